package vmapi

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/terraphim/tgr/vm"
)

//go:embed openapi.json
var openapiJSON []byte

// Backend is where machines of one kind come from.
type Backend struct {
	Provider vm.Provider
	Size     vm.Spec // of a machine whose request says nothing; the ID means nothing
	// Shared says that the agent shares its kernel with others, so that there is no clock, hostname or entropy to set.
	Shared bool
	Place  func(m vm.VM) Place // where things are in a machine; nil: the zero Place
}

// Config is what a Server is made of. Open and Key are required.
type Config struct {
	redacted

	// Open returns the backend of machines with all of these labels. No label is the default machine; a label that is
	// not known is an error, which the caller is told.
	Open       func(ctx context.Context, labels []string) (Backend, error)
	Key        []byte        // of the tokens: at least 32 bytes
	Version    string        // of the build
	Max        int           // machines at once; 0: 10
	MaxMemory  int64         // that a request may ask for, bytes; 0: 1 GiB
	MaxCPUs    int           // the same; 0: 1
	MaxFiles   int64         // bytes of one tar stream into a machine; 0: 16 GiB
	BootWithin time.Duration // 0: 2 minutes
	Life       time.Duration // of a machine at most; 0: 24 hours
	Idle       time.Duration // that a machine is kept without a lease and without a command; 0: 1 hour
	Log        *slog.Logger  // nil: nothing is logged. Never gets a command, its output or a token
}

func (c Config) orDefaults() (Config, error) {
	switch {
	case c.Open == nil:
		return c, errors.New("vmapi: nothing to make machines with")
	case len(c.Key) < minKey:
		return c, errors.New("vmapi: the key of the tokens has fewer than 32 bytes")
	}
	c.Max = cmp.Or(max(c.Max, 0), 10)
	c.MaxMemory = cmp.Or(c.MaxMemory, 1<<30)
	c.MaxCPUs = cmp.Or(c.MaxCPUs, 1)
	c.MaxFiles = cmp.Or(c.MaxFiles, 16<<30)
	c.BootWithin = cmp.Or(c.BootWithin, 2*time.Minute)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// Server gives out machines over HTTP. It is an http.Handler, and safe for concurrent use.
type Server struct {
	cfg      Config
	log      *slog.Logger
	sessions *vm.Sessions
	mux      *http.ServeMux
	replays  replays
	closing  chan struct{} // closed by Close
	work     sync.WaitGroup

	mu       sync.Mutex
	machines map[string]*machine
	closed   bool
}

// New returns a server without machines. Close frees those that it will have.
func New(cfg Config) (*Server, error) {
	cfg, err := cfg.orDefaults()
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, log: cfg.Log, machines: map[string]*machine{}, closing: make(chan struct{})}
	s.sessions = vm.NewSessions(vm.SessionConfig{Max: cfg.Max, Limit: cfg.Life, Idle: cfg.Idle, Expired: s.expired})
	s.mux = s.routes()
	return s, nil
}

// ServeHTTP answers a request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// Serve answers requests on l until ctx ends, then ends the server. Machines are freed by Close.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	hs := &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)}
	stop := context.AfterFunc(ctx, func() { hs.Close() }) // commands may run for hours: nobody waits for them
	defer stop()
	err := hs.Serve(l)
	if ctx.Err() != nil && errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Close frees all machines and refuses new ones. It returns when nothing is left of them, and is idempotent.
func (s *Server) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.closing)
	}
	for _, m := range s.machines {
		m.stop(&stopped{"the server was stopped"})
	}
	s.mu.Unlock()
	s.work.Wait()
	return nil
}

// expired ends a machine whose session is over.
func (s *Server) expired(session *vm.Session, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.machines {
		if m.session == session {
			m.stop(&stopped{reason})
		}
	}
}

// start begins to make a machine, if there is room for one.
func (s *Server) start(ctx context.Context, req CreateRequest, user string) (*machine, error) {
	back, err := s.cfg.Open(ctx, req.Labels)
	if err != nil {
		return nil, invalid("%v", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget()
	if s.closed {
		return nil, errorf(http.StatusServiceUnavailable, "unavailable", "the server is stopping")
	}
	session, err := s.sessions.Open()
	if err != nil {
		e := errorf(http.StatusServiceUnavailable, "limit", "at capacity: %d of %d machines are in use", s.sessions.Stats().Open, s.cfg.Max)
		e.RetryAfter = retryAtCapacity
		return nil, e
	}
	m := s.newMachine(req, back, user, session)
	s.machines[m.id] = m
	s.work.Go(m.live)
	return m, nil
}

// retryAtCapacity is when who found no room may ask again.
const retryAtCapacity = 2 * time.Second

// forget drops machines that ended long ago. It is called with the lock held.
func (s *Server) forget() {
	for id, m := range s.machines {
		m.mu.Lock()
		if m.state.ended() && time.Since(m.timings[len(m.timings)-1].Began) > keepEnded {
			delete(s.machines, id)
		}
		m.mu.Unlock()
	}
}

// find returns a machine.
func (s *Server) find(id string) (*machine, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.machines[id]; m != nil {
		return m, nil
	}
	return nil, errorf(http.StatusNotFound, "not_found", "there is no machine %q", cut(id, maxLabel))
}

// all are the machines, the newest first.
func (s *Server) all() []VM {
	s.mu.Lock()
	s.forget()
	machines := make([]*machine, 0, len(s.machines))
	for _, m := range s.machines {
		machines = append(machines, m)
	}
	s.mu.Unlock()
	views := make([]VM, 0, len(machines))
	for _, m := range machines {
		views = append(views, m.view())
	}
	slices.SortFunc(views, func(a, b VM) int {
		return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), strings.Compare(a.ID, b.ID))
	})
	return views
}

// cut shortens what a caller sent, for a message.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}
