package redis_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	goredis "github.com/redis/go-redis/v9"

	"anytime/internal/store"
	"anytime/internal/store/redis"
	"anytime/internal/store/redis/redistest"
	"anytime/internal/store/storetest"
)

func onlyAll(t *testing.T) {
	t.Helper()
	if !all() {
		t.Skip("only in make test-all: it wants a real redis-server")
	}
}

// TestCluster has runs on the nodes of a cluster, and servers that share them.
func TestCluster(t *testing.T) {
	onlyAll(t)
	var nodes []string
	for range 3 {
		nodes = append(nodes, redistest.Start(t, "--cluster-enabled", "yes", "--cluster-port", port(redistest.FreeAddr(t))).Addr)
	}
	join := exec.Command("redis-cli", append([]string{"--cluster-yes", "--cluster", "create"}, nodes...)...)
	if out, err := join.CombinedOutput(); err != nil {
		t.Fatalf("redis-cli: %v\n%s", err, out)
	}
	for _, node := range nodes {
		client := goredis.NewClient(&goredis.Options{Addr: node})
		eventually(t, "the cluster is up", func() bool {
			return strings.Contains(client.ClusterInfo(t.Context()).Val(), "cluster_state:ok")
		})
		_ = client.Close()
	}
	url := "redis+cluster://" + strings.Join(nodes[:2], ",")
	storetest.Test(t, func(t *testing.T) store.Store { return open(t, fresh(url), redis.Options{}) })
	a, b := open(t, url, redis.Options{}), open(t, url, redis.Options{})
	var ids []string
	for i := range 20 {
		ids = append(ids, fmt.Sprintf("run%02d", i))
		create(t, a, ids[i])
		appendTo(t, a, ids[i], events("thinking", "one"))
		if _, err := b.Append(within(t), ids[i], events("thinking", "two")); !errors.Is(err, store.ErrLeased) {
			t.Errorf("Append by another: %v, want ErrLeased", err)
		}
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	takeOver(t, b, 100, ids...)
	for _, id := range ids {
		appendTo(t, b, id, events("thinking", "two"))
		wantTexts(t, b, id, 0, "one two")
	}
	if taken, _, err := b.Take(within(t), "k", redis.Allowed{N: 1, Per: time.Hour}, 1, false); err != nil || !taken {
		t.Errorf("Take = %v, %v", taken, err)
	}
}

func port(addr string) string {
	_, p, _ := net.SplitHostPort(addr)
	return p
}

// TestSentinel has the master die under a store, and another one be made it.
func TestSentinel(t *testing.T) {
	onlyAll(t)
	master := redistest.Start(t)
	replica := redistest.Start(t, "--replicaof", "127.0.0.1 "+port(master.Addr))
	config := filepath.Join(t.TempDir(), "sentinel.conf")
	text := fmt.Sprintf("sentinel monitor mymaster 127.0.0.1 %s 1\nsentinel down-after-milliseconds mymaster 500\nsentinel failover-timeout mymaster 3000\n", port(master.Addr))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	sentinel := redistest.Run(t, config, "--sentinel")
	client := goredis.NewClient(&goredis.Options{Addr: replica.Addr})
	defer client.Close()
	eventually(t, "the replica follows", func() bool {
		return strings.Contains(client.Info(t.Context(), "replication").Val(), "master_link_status:up")
	})
	asked := goredis.NewSentinelClient(&goredis.Options{Addr: sentinel.Addr})
	defer asked.Close()
	eventually(t, "the sentinel knows the replica", func() bool {
		list, err := asked.Replicas(t.Context(), "mymaster").Result()
		return err == nil && len(list) == 1
	})
	a, b := open(t, "redis+sentinel://"+sentinel.Addr+"/mymaster", redis.Options{}), open(t, "redis+sentinel://"+sentinel.Addr+"/mymaster", redis.Options{})
	create(t, a, "r")
	appendTo(t, a, "r", events("thinking", "one"))
	master.Kill()
	appendTo(t, a, "r", events("thinking", "two"))
	eventually(t, "the other one is master and has all", func() bool { return a.Ready(within(t)) == nil })
	appendTo(t, a, "r", events("thinking", "three"))
	wantTexts(t, b, "r", 0, "one two three")
}

// TestTLS has a server known by a certificate that is not the system's.
func TestTLS(t *testing.T) {
	onlyAll(t)
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]*pem.Block{"cert": {Type: "CERTIFICATE", Bytes: cert}, "key": {Type: "PRIVATE KEY", Bytes: private}}
	for name, block := range files {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	certFile, keyFile := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	tlsAddr := redistest.FreeAddr(t)
	redistest.Start(t, "--tls-port", port(tlsAddr), "--tls-cert-file", certFile, "--tls-key-file", keyFile, "--tls-ca-cert-file", certFile)
	url := fmt.Sprintf("rediss://%s?ca=%s&cert=%s&key=%s", tlsAddr, certFile, certFile, keyFile)
	s := open(t, url, redis.Options{})
	create(t, s, "r")
	at, err := redis.ParseAddress("rediss://"+tlsAddr, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := redis.Open(t.Context(), at, redis.Options{}); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("Open without the ca: %v; want ErrUnavailable, for the certificate is not known", err)
	}
}

// TestConnections has thousands of readers share one connection.
func TestConnections(t *testing.T) {
	onlyAll(t)
	server := redistest.Start(t)
	url := "redis://" + server.Addr
	a, b := open(t, url, redis.Options{}), open(t, url, redis.Options{})
	client := goredis.NewClient(&goredis.Options{Addr: server.Addr})
	defer client.Close()
	const runs, readers = 200, 2000
	for i := range runs {
		create(t, a, fmt.Sprint("run", i))
	}
	done := make(chan error, readers)
	for i := range readers {
		go func() { done <- b.Wait(within(t), fmt.Sprint("run", i%runs), 0) }()
	}
	eventually(t, "all are subscribed to", func() bool {
		channels, err := client.PubSubChannels(t.Context(), "anytime:{run*").Result()
		return err == nil && len(channels) == runs
	})
	list, err := client.ClientList(t.Context()).Result()
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(list, "\n"); n > 60 {
		t.Errorf("%d readers use %d connections", readers, n)
	} else {
		t.Logf("%d readers of %d runs, two servers: %d connections", readers, runs, n)
	}
	begun := time.Now()
	for i := range runs {
		go func() {
			if _, err := a.Append(within(t), fmt.Sprint("run", i), events("thinking", "x")); err != nil {
				t.Error(err)
			}
		}()
	}
	for range readers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Logf("all woken after %v", time.Since(begun))
}

// TestFull has Redis run out of memory, which is as if it were away.
func TestFull(t *testing.T) {
	onlyAll(t)
	server := redistest.Start(t, "--maxmemory-policy", "noeviction")
	a, b := open(t, "redis://"+server.Addr, redis.Options{}), open(t, "redis://"+server.Addr, redis.Options{})
	client := goredis.NewClient(&goredis.Options{Addr: server.Addr})
	defer client.Close()
	create(t, a, "r")
	bound := func(size string) {
		t.Helper()
		if err := client.ConfigSet(t.Context(), "maxmemory", size).Err(); err != nil {
			t.Fatal(err)
		}
	}
	bound("1")
	create(t, a, "new")
	if err := a.Ready(within(t)); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Ready: %v, want ErrUnavailable", err)
	}
	appendTo(t, a, "r", events("thinking", "one"))
	if last := wantTexts(t, a, "r", 0, "one"); last == 1 {
		t.Error("what is not committed has an offset as if it were")
	}
	bound("0")
	eventually(t, "all is committed", func() bool { return a.Ready(within(t)) == nil })
	wantTexts(t, b, "r", 0, "one")
	wantTexts(t, b, "new", 0, "")
}

// TestBacklog has Redis stay away until what waits for it is too much.
func TestBacklog(t *testing.T) {
	m := miniredis.RunT(t)
	s := open(t, "redis://"+m.Addr(), redis.Options{Backlog: 10 << 10})
	create(t, s, "r")
	m.Close()
	appendTo(t, s, "r", events("thinking", "one"))
	var err error
	n := 0
	for ; err == nil && n < 100; n++ {
		err = s.Create(within(t), store.Run{ID: fmt.Sprint("new", n), Request: make([]byte, 1<<10)})
	}
	if !errors.Is(err, store.ErrUnavailable) || n < 4 || n > 10 {
		t.Errorf("Create %d: %v; want ErrUnavailable when some 10 KiB are kept", n, err)
	}
	appendTo(t, s, "r", events("thinking", "two")) // what runs goes on
	if err := m.Restart(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all is committed", func() bool { return s.Ready(within(t)) == nil })
	create(t, s, "another")
}
