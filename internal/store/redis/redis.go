package redis

import (
	"context"
	"crypto/rand"
	"embed"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"anytime/internal/store"
)

// Options are what a store may be told. Zero values are the defaults.
type Options struct {
	MaxAge  time.Duration // that ended runs are kept, since their last commit; 0 for ever
	Lease   time.Duration // how long a server that is not heard of keeps its runs. 0: 6 s
	Backlog int64         // bytes of runs that are kept here while Redis is away; beyond it none is begun. 0: 256 MiB
	Logger  *slog.Logger  // nil: nothing is logged
}

// Store is a store.Shared in Redis.
type Store struct {
	client  redis.UniversalClient
	pubsub  *redis.PubSub
	opts    Options
	log     *slog.Logger
	prefix  string
	session string // this server's, as long as it runs
	close   func() error

	ctx     context.Context // ends when the store is closed, after the last commit
	stop    context.CancelFunc
	closing chan struct{}
	kick    chan struct{} // something is pending
	wg      sync.WaitGroup
	claims  sync.Mutex // held while a run is claimed

	mu     sync.Mutex // guards what follows, and the runs held
	closed bool
	away   bool // the last round of commits did not get through
	runs   map[string]*held
	ended  []string // runs that this session has no more
	topics map[string]*topic
	obey   func(ctx context.Context, id string, command []byte) []byte
	asked  map[string]chan []byte // commands under way, by their own ids
	served map[string]*order      // commands of others
	places map[place]struct{}
}

var _ store.Shared = (*Store)(nil)

// patience is for one exchange with Redis; behind it Redis is away.
var patience = time.Second

const (
	spacing = 10 * time.Millisecond // between rounds of commits
	retry   = 250 * time.Millisecond
)

//go:embed scripts
var sources embed.FS

func script(name string) *redis.Script {
	source, err := sources.ReadFile("scripts/" + name + ".lua")
	if err != nil {
		panic(err) // it is embedded
	}
	return redis.NewScript(string(source))
}

var (
	appendScript  = script("append")
	claimScript   = script("claim")
	releaseScript = script("release")
	deleteScript  = script("delete")
	beatScript    = script("beat")
	aliveScript   = script("alive")
	buryScript    = script("bury")
	takeScript    = script("take")
	holdScript    = script("hold")
)

// Open connects to Redis, which must be there now.
func Open(ctx context.Context, at Address, opts Options) (*Store, error) {
	if opts.Lease == 0 {
		opts.Lease = 6 * time.Second
	}
	if opts.Backlog == 0 {
		opts.Backlog = 256 << 20
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	redis.SetLogger(quiet{})
	s := &Store{
		client: at.client(), opts: opts, log: opts.Logger, prefix: at.prefix, session: rand.Text(),
		closing: make(chan struct{}), kick: make(chan struct{}, 1),
		runs: map[string]*held{}, topics: map[string]*topic{}, asked: map[string]chan []byte{}, served: map[string]*order{}, places: map[place]struct{}{},
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.close = sync.OnceValue(s.shut)
	if _, err := s.beat(ctx); err != nil {
		s.stop()
		return nil, errors.Join(fmt.Errorf("open store at %s: %w", at, err), s.client.Close())
	}
	s.pubsub = s.client.Subscribe(s.ctx, s.commandsOf(s.session))
	messages := s.pubsub.ChannelWithSubscriptions(redis.WithChannelSize(4096), redis.WithChannelHealthCheckInterval(patience),
		redis.WithChannelPingTimeout(patience), redis.WithChannelReconnectTimeout(patience))
	s.wg.Go(func() { s.listen(messages) })
	s.wg.Go(s.commit)
	s.wg.Go(s.keep)
	return s, nil
}

// quiet keeps the client from writing to standard error: what goes wrong is the store's to tell.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

// Ready implements store.Store.
func (s *Store) Ready(ctx context.Context) error {
	if err := s.usable(ctx); err != nil {
		return err
	}
	if err := s.client.Ping(ctx).Err(); err != nil {
		return s.failure(ctx, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away {
		return fmt.Errorf("%w: there are commits that have not got through yet", store.ErrUnavailable)
	}
	return nil
}

// Close implements store.Store. Runs that are under way are for others to take over, at once.
func (s *Store) Close() error {
	return s.close()
}

func (s *Store) shut() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	close(s.closing)
	s.wg.Wait()
	s.stop()
	return errors.Join(s.pubsub.Close(), s.client.Close())
}

func (s *Store) usable(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return store.ErrClosed
	}
	return ctx.Err()
}

// failure is Redis' error as the store's.
func (s *Store) failure(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, redis.ErrClosed), s.usable(context.Background()) != nil:
		return store.ErrClosed
	case redis.IsOOMError(err):
		return fmt.Errorf("%w: redis: %w", store.ErrFull, err)
	}
	return fmt.Errorf("%w: redis: %w", store.ErrUnavailable, err)
}
