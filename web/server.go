package web

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/terraphim/tgr"
)

// limits hold slow and greedy clients. A stream lifts read, and renews write with every write.
type limits struct {
	header, read, write, idle time.Duration
	headerBytes               int
}

func defaultLimits() limits {
	return limits{
		header:      10 * time.Second,
		read:        60 * time.Second, // the body too: 25 MiB of a webhook at 3.5 Mbit/s
		write:       60 * time.Second,
		idle:        2 * time.Minute,
		headerBytes: 64 << 10,
	}
}

// Server serves pages, API, streams, metrics and health. It is safe for concurrent use.
type Server struct {
	cfg     Config
	limits  limits
	log     *slog.Logger
	origin  *http.CrossOriginProtection
	pages   *template.Template
	handler http.Handler
	streams chan struct{} // a place for each open stream

	stop     chan struct{} // closed when the server begins to stop: streams end
	stopOnce sync.Once
}

// New makes a Server. It fails if a required part of c is missing.
func New(c Config) (*Server, error) {
	if c.Runs == nil || c.Logs == nil || c.Control == nil {
		return nil, errors.New("web: Runs, Logs and Control are required")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Metrics == nil {
		c.Metrics = NewMetrics(c.Version)
	}
	if c.Poll <= 0 {
		c.Poll = 500 * time.Millisecond
		if c.Changed != nil {
			c.Poll = 5 * time.Second
		}
	}
	c.Heartbeat = cmp.Or(max(c.Heartbeat, 0), 15*time.Second)
	c.Shutdown = cmp.Or(max(c.Shutdown, 0), 10*time.Second)
	c.MaxStreams = cmp.Or(max(c.MaxStreams, 0), 256)
	s := &Server{cfg: c, limits: defaultLimits(), log: c.Log, origin: http.NewCrossOriginProtection(),
		streams: make(chan struct{}, c.MaxStreams), stop: make(chan struct{})}
	var err error
	if s.pages, err = parsePages(); err != nil {
		return nil, err
	}
	s.handler = s.wrap(s.mux())
	return s, nil
}

// Handler returns the whole site, the webhook included.
func (s *Server) Handler() http.Handler { return s.handler }

// Serve answers on l until ctx ends, and closes l. Then it takes no more connections, ends the streams, and
// gives other requests Config.Shutdown to finish before it cuts them. It returns nil if they all did.
// A Server serves once: its streams stay closed after the first Serve ended.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: s.limits.header,
		ReadTimeout:       s.limits.read,
		WriteTimeout:      s.limits.write,
		IdleTimeout:       s.limits.idle,
		MaxHeaderBytes:    s.limits.headerBytes,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), // slow and broken clients
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	defer s.stopOnce.Do(func() { close(s.stop) })
	select {
	case err := <-failed:
		srv.Close()
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	s.stopOnce.Do(func() { close(s.stop) })
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Shutdown)
	defer cancel()
	err := srv.Shutdown(grace)
	<-failed
	if err != nil {
		srv.Close()
		return fmt.Errorf("serve %s: requests were still open after %s", l.Addr(), s.cfg.Shutdown)
	}
	return nil
}

// csp lets a page load only what this server serves: no inline script or style, no frame, no other origin.
const csp = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

// wrap gives every answer its security headers, survives a panic, and measures.
func (s *Server) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", csp)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		rec := &recorder{ResponseWriter: w}
		start := time.Now()
		defer func() {
			if p := recover(); p != nil {
				if p == http.ErrAbortHandler {
					panic(p)
				}
				s.log.Error("a handler panicked", "method", r.Method, "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
				if rec.status != 0 {
					panic(http.ErrAbortHandler) // half an answer must not look whole
				}
				s.fail(rec, r, tgr.Errorf("web", tgr.Internal, "internal error"))
			}
			if _, route, _ := strings.Cut(r.Pattern, " "); !rec.stream {
				s.cfg.Metrics.observeHTTP(route, r.Method, max(rec.status, http.StatusOK), time.Since(start))
			}
			s.log.Debug("request", "method", r.Method, "path", r.URL.Path, "status", rec.status, "took", time.Since(start))
		}()
		next.ServeHTTP(rec, r)
	})
}

// recorder remembers the status of an answer.
type recorder struct {
	http.ResponseWriter
	status int
	stream bool
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
