package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.opentelemetry.io/otel/trace"

	"anytime/internal/anytime"
	"anytime/internal/catalog"
	"anytime/internal/catalog/adapters"
	"anytime/internal/doctor"
	"anytime/internal/server"
	"anytime/internal/store"
	"anytime/internal/store/memory"
	"anytime/internal/store/redis"
	"anytime/internal/store/sqlite"
	"anytime/web"
)

// What a client may take and send before its request has begun. There is no write timeout: streams last as long as thoughts, and the
// handler gives each write its own.
const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	maxHeader     = 64 << 10 // bytes
	// sendBuffer is what the system holds for a client that does not read, in bytes. Left to itself it grows to megabytes.
	sendBuffer = 64 << 10
)

// run serves until ctx ends; then every run in flight answers, which hurry's end cuts short. What is to be read by people, the
// address among it, goes to stdout, the log to stderr.
func run(ctx, hurry context.Context, cfg Config, stdout, stderr io.Writer) (err error) {
	if err := cfg.Validate(); err != nil {
		return usageError{err}
	}
	log := newLogger(&cfg, stderr)
	// Before anything that takes long, so that a taken port fails at once.
	listener, err := listen(ctx, cfg.Addr, cfg.ClientTimeout)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer listener.Close() // again, where it has been served
	// What was opened is closed in the opposite order, when nothing uses it any more.
	closing := func(what string, c io.Closer) {
		if e := c.Close(); e != nil {
			err = errors.Join(err, fmt.Errorf("close %s: %w", what, e))
		}
	}
	kept, err := openStore(ctx, &cfg, log)
	if err != nil {
		return err
	}
	defer closing("store", kept)

	registry := prometheus.NewRegistry()
	engines := newEngines()
	registry.MustRegister(engines, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	folder, err := adapters.OpenFolder(cfg.adapterFolder(), int64(cfg.MaxAdapter))
	if err != nil {
		return err
	}
	measure, err := newGate(&cfg)
	if err != nil {
		return usageError{err}
	}
	found, hosts, err := findModels(ctx, &cfg, stderr, log, engines, folder)
	switch {
	case ctx.Err() != nil:
		return nil // a download that was broken off goes on at the next start
	case err != nil:
		return err
	}
	models, err := catalog.New(catalog.Config{
		Models: found, MemoryBytes: cmp.Or(int64(cfg.Memory), doctor.Memory()/5*4), Logger: log,
	})
	if err != nil {
		return err
	}
	defer closing("models", models)
	loras := adapters.New(adapters.Config{Folder: folder, Catalog: models, Models: hosts, Gate: measure, Margin: cfg.GateMargin, Logger: log})
	defer closing("adapters", loras)
	tracing, err := newTracing(ctx, &cfg, log)
	if err != nil {
		return err
	}
	defer closing("traces", tracing)
	solver := anytime.New(anytime.Config{
		Models: models, Store: kept, Metrics: anytime.NewMetrics(registry), Tracer: tracing.runs(), Logger: log, MaxRuns: cfg.MaxRuns, AnswerTokens: cfg.AnswerTokens,
		Elastic: cfg.elastic(), ElasticTokens: cfg.Elastic == elasticAll,
	})
	defer closing("solver", solver)
	handler, err := newHandler(ctx, &cfg, listener.Addr(), solver, models, loras, kept, registry, tracing.requests(), log)
	if err != nil {
		return err
	}
	var silent newcomers
	web := &http.Server{
		Handler: handler, ConnState: silent.note, ReadHeaderTimeout: min(headerTimeout, cfg.ClientTimeout), IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if tcp, ok := c.(*net.TCPConn); ok {
				_ = tcp.SetWriteBuffer(sendBuffer) // else a slow client costs more memory, and nothing is wrong
			}
			return ctx
		},
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	served := make(chan error, 1)
	go func() { served <- web.Serve(listener) }()
	log.Info("listening", "address", listener.Addr().String())

	err = serve(ctx, served, models, solver, func() { greet(stdout, &cfg, listener.Addr(), models) })
	grace, cancel := context.WithTimeout(hurry, cfg.Grace)
	defer cancel()
	if err == nil {
		log.Info("stopping: runs in flight answer now", "runs", solver.Live(), "grace", cfg.Grace)
		// Who has an answer should not ask again on a connection that is about to be closed.
		web.SetKeepAlivesEnabled(false)
		_ = loras.Close() // nothing is measured beside them; it has no error
		if e := solver.Drain(grace); e != nil {
			err = fmt.Errorf("%d runs did not answer in time; with a store on disk the next start takes them up: %w", solver.Live(), e)
		}
	}
	// Before the replies are waited for, so that who is still waiting for a model to be loaded is told that none will be.
	err = errors.Join(err, solver.Close(), models.Close())
	silent.wait(grace, turnAway(listener))
	if e := web.Shutdown(grace); e != nil {
		err = errors.Join(err, fmt.Errorf("replies were cut off: %w", e), web.Close())
	}
	if e := <-served; err == nil && !errors.Is(e, http.ErrServerClosed) && !errors.Is(e, net.ErrClosed) {
		err = e
	}
	return err
}

func listen(ctx context.Context, addr string, patience time.Duration) (net.Listener, error) {
	l := net.ListenConfig{Control: giveUpAfter(patience)}
	l.SetMultipathTCP(false) // turnAway's filter wants plain TCP
	return l.Listen(ctx, "tcp", addr)
}

// serve returns nil when ctx ends, or why it cannot go on. It loads the default model and takes up what an earlier process left; what
// comes in meanwhile waits for the model.
func serve(ctx context.Context, served chan error, models *catalog.Catalog, solver *anytime.Solver, greet func()) error {
	starting, cancel := context.WithCancel(ctx)
	defer cancel()
	started := make(chan struct{})
	var failure error // of the start, once that has ended
	go func() {
		defer close(started)
		failure = start(starting, models, solver)
	}()
	select {
	case <-started:
		switch {
		case ctx.Err() != nil:
			return nil
		case failure != nil:
			return failure
		}
		greet()
		taken := make(chan struct{})
		go func() {
			defer close(taken)
			solver.TakeOver(starting)
		}()
		defer func() { cancel(); <-taken }()
	case err := <-served:
		cancel()
		<-started
		served <- err
		return err
	case <-ctx.Done():
		<-started // nothing is taken up while the solver drains
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-served:
		served <- err
		return err
	}
}

func start(ctx context.Context, models *catalog.Catalog, solver *anytime.Solver) error {
	_, release, err := models.Acquire(ctx, "")
	if failed := new(catalog.LoadError); errors.As(err, &failed) {
		return fmt.Errorf("load model %q: %w", failed.Model, failed.Err)
	}
	if err != nil {
		return err
	}
	defer release()
	return solver.Recover(ctx)
}

func openStore(ctx context.Context, cfg *Config, log *slog.Logger) (store.Store, error) {
	if strings.HasPrefix(cfg.Store, "redis") {
		at, err := redis.ParseAddress(cfg.Store, cfg.RedisPassword)
		if err != nil {
			return nil, err
		}
		return redis.Open(ctx, at, redis.Options{MaxAge: cfg.RetentionAge, Logger: log})
	}
	path, err := cfg.storePath()
	switch {
	case err != nil:
		return nil, err
	case path == "":
		return memory.New(memory.Options{MaxBytes: int64(cfg.RetentionSize)}), nil
	}
	return sqlite.Open(path, sqlite.Options{MaxAge: cfg.RetentionAge, MaxBytes: int64(cfg.RetentionSize)})
}

// listed shows the server the catalog's models.
type listed struct{ *catalog.Catalog }

func (l listed) Models() []server.Model {
	infos := l.Catalog.Models()
	list := make([]server.Model, len(infos))
	for i, info := range infos {
		list[i] = server.Model(info)
	}
	return list
}

func newHandler(ctx context.Context, cfg *Config, addr net.Addr, solver *anytime.Solver, models *catalog.Catalog, loras *adapters.Manager,
	kept store.Store, registry *prometheus.Registry, tracer trace.TracerProvider, log *slog.Logger) (http.Handler, error) {
	keys, err := cfg.keys()
	if err != nil {
		return nil, err
	}
	tcp, ok := addr.(*net.TCPAddr)
	page, err := web.Handler()
	if err != nil {
		return nil, err
	}
	return server.New(server.Config{
		Page: page, Solver: solver, Models: listed{models}, Adapters: loras, Store: kept, Metrics: registry, Tracer: tracer, Logger: log,
		Ready: func(asked context.Context) error {
			if ctx.Err() != nil {
				return anytime.ErrDraining
			}
			return models.Ready(asked)
		},
		Keys: keys, Quota: newQuota(kept), Loopback: ok && tcp.IP.IsLoopback(), AllowedHosts: cfg.AllowedHosts, AllowedOrigins: cfg.AllowedOrigins,
		Sampling: cfg.sampling(), Efforts: cfg.Efforts, ChatAnswerTokens: cfg.ChatAnswerTokens, MaxBody: int64(cfg.MaxBody),
		Timeout: cfg.ClientTimeout,
	})
}

func newLogger(cfg *Config, w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
		level = slog.LevelInfo
	}
	options := &slog.HandlerOptions{Level: level}
	if cfg.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// greet says where the server is and how to try it.
func greet(w io.Writer, cfg *Config, addr net.Addr, models *catalog.Catalog) {
	url := "http://" + reachable(addr.String())
	key := ""
	if len(cfg.Keys) > 0 || cfg.KeysFile != "" {
		key = `-H "Authorization: Bearer $KEY" `
	}
	m := models.Models()[0]
	problem := append(m.Examples, "What is 17 * 24?")[0]
	body, _ := json.Marshal(map[string]string{"problem": problem}) // strings can be
	fmt.Fprintf(w, "%s is ready. Open %s, or try:\n\n  curl -s '%s/solve?budget=2s' %s-H 'Content-Type: application/json' -d '%s'\n\n",
		m.ID, url, url, key, strings.ReplaceAll(string(body), "'", `'\''`))
}

// reachable is an address to call where one to listen on may stand for all.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return addr
}

// health asks a server whether it is ready.
func health(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, 4*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+reachable(addr)+"/readyz", http.NoBody)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(res.Body, 1<<10))
		return fmt.Errorf("not ready: %s: %s", res.Status, body)
	}
	return nil
}

// usageError is wrong use, as opposed to bad luck.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }
