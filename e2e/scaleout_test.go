package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.yaml.in/yaml/v3"

	"anytime/internal/anytime"
	"anytime/internal/store/redis/redistest"
)

// deployed is the server's configuration in the Kubernetes manifests, with what is another on this machine replaced.
func deployed(t *testing.T, r *replicated, engines ...*scripted) string {
	t.Helper()
	text, err := os.ReadFile("../deploy/kubernetes/anytime.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var config map[string]any
	for documents := yaml.NewDecoder(bytes.NewReader(text)); config == nil; {
		var m struct {
			Kind string
			Data map[string]string
		}
		if err := documents.Decode(&m); err != nil {
			t.Fatal("no ConfigMap: ", err)
		}
		if m.Kind == "ConfigMap" {
			if err := yaml.Unmarshal([]byte(m.Data["config.yaml"]), &config); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !strings.HasPrefix(config["store"].(string), "redis://") {
		t.Fatalf("its store is %v", config["store"])
	}
	config["store"] = "redis://" + r.addr
	delete(config, "keys_file") // so that only loopback may be served, as here
	delete(config, "addr")
	delete(config, "data")
	model := config["models"].([]any)[0].(map[string]any)
	list := model["engine"].([]any)
	if len(list) != len(engines) {
		t.Fatalf("it has %d engines", len(list))
	}
	for i, e := range list {
		e.(map[string]any)["url"], e.(map[string]any)["model"] = local(engines[i].address), "scripted"
	}
	model["family"], model["ctx"] = "think", 8192 // the scripted server tells neither
	data, err := yaml.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "config.yaml")
	write(t, path, string(data))
	return path
}

// nginx starts the real one with deploy/nginx.conf before two replicas.
func nginx(t *testing.T, replicas ...*server) *server {
	t.Helper()
	path, err := exec.LookPath("nginx")
	if err != nil {
		t.Fatal("nginx is not installed (Debian's package nginx-light): this test of ANYTIME_TEST_ALL wants it")
	}
	conf, err := os.ReadFile("../deploy/nginx.conf")
	if err != nil {
		t.Fatal(err)
	}
	front := freeAddress(t)
	text := string(conf)
	for was, is := range map[string]string{
		"listen 8080;":           "listen " + front + ";",
		"server 127.0.0.1:8081 ": "server " + strings.TrimPrefix(replicas[0].url, "http://") + " ",
		"server 127.0.0.1:8082 ": "server " + strings.TrimPrefix(replicas[1].url, "http://") + " ",
	} {
		if strings.Count(text, was) != 1 {
			t.Fatalf("nginx.conf does not have %q once", was)
		}
		text = strings.Replace(text, was, is, 1)
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "anytime.conf"), text)
	temporary := ""
	for _, name := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		temporary += fmt.Sprintf("%s_temp_path %s/%s;\n", name, dir, name)
	}
	write(t, filepath.Join(dir, "nginx.conf"), fmt.Sprintf("daemon off;\nmaster_process off;\npid %s/pid;\nerror_log stderr error;\n"+
		"events { worker_connections 1024; }\nhttp {\naccess_log off;\n%sinclude %s/anytime.conf;\n}\n", dir, temporary, dir))
	s := &server{t: t, url: "http://" + front}
	s.cmd = exec.Command(path, "-p", dir, "-c", filepath.Join(dir, "nginx.conf"))
	var said bytes.Buffer
	s.cmd.Stdout, s.cmd.Stderr = &said, &said
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = s.cmd.Wait() // it is killed
		close(ended)
	}()
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("nginx said:\n%s", said.String())
		}
	})
	s.until("listening", func() bool {
		r, err := http.Get(s.url + "/healthz")
		if err == nil {
			r.Body.Close()
		}
		return err == nil && r.StatusCode == http.StatusOK
	})
	return s
}

// Replicas, configured as the manifests have it, behind nginx, configured as deploy has it: events come at once, a replica that is killed
// takes nobody's answer with it, nor does one that is stopped while requests come.
func TestBehindNginx(t *testing.T) {
	if !all() {
		t.Skip("only in make test-all: it wants nginx and redis-server")
	}
	r, a, b := startRedis(t), newScripted(t), newScripted(t)
	config := deployed(t, r, a, b)
	one, two, three := start(t, "", "-config", config), start(t, "", "-config", config), start(t, "", "-config", config)
	front := nginx(t, one, two)

	// Were it to buffer, no thinking would come before the end, and there is none before the interrupt.
	interrupted(t, front)

	// Killed under streams: their readers go on through nginx, at the other.
	c := startCrowd(t, flight(), 600, front, front)
	one.kill()
	c.finish("a replica behind nginx killed")
	c.kept(front)

	// Stopped under requests: each is answered, by it or by the other.
	front = nginx(t, two, three)
	var wg sync.WaitGroup
	started := make(chan struct{}, 64)
	for i := range 8 {
		wg.Go(func() {
			for n := range 8 {
				started <- struct{}{}
				var reply anytime.Reply
				res := front.do("POST", "/solve?budget=100", asked("Roll.", 100*i+n))
				if front.into(res, &reply); reply.Answer == nil {
					t.Errorf("no answer: %s", res.body)
				}
			}
		})
	}
	for range 16 {
		<-started
	}
	two.signal(syscall.SIGTERM)
	wg.Wait()
	if err := <-two.exit; err != nil {
		t.Errorf("the replica that was stopped: %v", err)
	}
}

// BenchmarkShared is what runs cost a Redis and the replica that executes them, streamed there or at another replica: the figures from which
// docs/scale-out.md reckons. Tokens come at 50 a second and run, as engines give them to many at once; or five times as fast.
func BenchmarkShared(b *testing.B) {
	const runs, tokens = 64, 250
	for name, row := range map[string]struct {
		elsewhere bool
		pace      time.Duration
	}{
		"read where they run":       {false, 20 * time.Millisecond},
		"read elsewhere":            {true, 20 * time.Millisecond},
		"read where they run, fast": {false, 4 * time.Millisecond},
	} {
		b.Run(name, func(b *testing.B) {
			kept := redistest.Start(b)
			client := redis.NewClient(&redis.Options{Addr: kept.Addr})
			defer client.Close()
			u := newScripted(b)
			u.pace = row.pace
			path := filepath.Join(b.TempDir(), "config.yaml")
			write(b, path, "models:\n- id: there\n  ctx: 4096\n  family: think\n  engine: {kind: openai, url: '"+local(u.address)+"', model: scripted, sequences: 256}\n")
			one := start(b, "", "-config", path, "-store", "redis://"+kept.Addr)
			reader := one
			if row.elsewhere {
				reader = start(b, "", "-config", path, "-store", "redis://"+kept.Addr)
			}
			before, cpu, there := info(b, client), cpuOf(b, one), cpuOf(b, reader)
			events := 0
			began := time.Now()
			for b.Loop() {
				events += stream(b, runs, tokens, one, reader)
			}
			took := time.Since(began)
			after := info(b, client)
			n := float64(b.N * runs * tokens)
			per := func(key string) float64 { return (after[key] - before[key]) / n }
			b.ReportMetric(n/float64(events), "tokens/event")
			b.ReportMetric(per("total_commands_processed"), "redis-commands/token")
			b.ReportMetric(per("total_net_input_bytes"), "redis-bytes-in/token")
			b.ReportMetric(per("total_net_output_bytes"), "redis-bytes-out/token")
			b.ReportMetric(1e6*(per("used_cpu_sys")+per("used_cpu_user")), "redis-cpu-µs/token")
			b.ReportMetric((after["used_memory"]-before["used_memory"])/float64(b.N*runs), "redis-memory-bytes/run")
			b.ReportMetric(1e6*(cpuOf(b, one)-cpu)/n, "server-cpu-µs/token")
			if row.elsewhere {
				b.ReportMetric(1e6*(cpuOf(b, reader)-there)/n, "reader-cpu-µs/token")
			}
			b.ReportMetric(n/took.Seconds(), "tokens/s")
		})
	}
}

// stream starts runs at once and reads their events at a server; it returns how many there were.
func stream(b *testing.B, runs, tokens int, at, reader *server) (events int) {
	var wg sync.WaitGroup
	counts := make([]int, runs)
	for i := range runs {
		wg.Go(func() {
			ctx, leave := context.WithCancel(context.Background())
			defer leave()
			count := func(list []event) {
				for _, e := range list {
					if e.kind == "thinking" {
						counts[i]++
					}
				}
			}
			query := fmt.Sprintf("/solve?budget=%d&on_disconnect=continue", tokens)
			list := at.events(ctx, "POST", query, asked("Go on.", i), func(e event) bool { return reader != at && e.kind == "run" })
			if reader != at {
				var run anytime.RunData
				if err := json.Unmarshal([]byte(list[0].data), &run); err != nil {
					b.Error(err)
				}
				list = reader.events(ctx, "GET", "/solve/"+run.ID+"/events", nil, nil)
			}
			if count(list); list[len(list)-1].kind != "done" {
				b.Errorf("run %d ended with %+v", i, list[len(list)-1])
			}
		})
	}
	wg.Wait()
	for _, n := range counts {
		events += n
	}
	return events
}

// info is what Redis counts.
func info(b *testing.B, client *redis.Client) map[string]float64 {
	b.Helper()
	text, err := client.Info(context.Background()).Result()
	if err != nil {
		b.Fatal(err)
	}
	all := map[string]float64{}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if n, err := strconv.ParseFloat(value, 64); err == nil {
			all[key] = n
		}
	}
	return all
}

// cpuOf is the processor time that a server has used, in seconds.
func cpuOf(b *testing.B, s *server) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	user, _ := strconv.ParseFloat(fields[11], 64)
	system, _ := strconv.ParseFloat(fields[12], 64)
	const ticks = 100 // a second, on every Linux
	return (user + system) / ticks
}
