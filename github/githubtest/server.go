// Package githubtest is a small GitHub on loopback: git over HTTP, the part of the REST API that reports use, and
// signed webhooks. Its repositories are real git repositories, its requests go over real sockets, and its faults are
// scripted. The tests of several rooms and the demo use it; nothing in it is for production.
package githubtest

import (
	"context"
	"crypto/subtle"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Config of a Server. The zero value is a server that asks for no credentials.
type Config struct {
	Dir  string // where the repositories are; "": a temporary directory, removed by Close
	Addr string // "": a free port of 127.0.0.1
	// Token is asked for by the API, and by git for private repositories. It is a personal one: check runs are refused,
	// as GitHub does. "": any token will do, for anything.
	Token string
	Login string // the user whose token it is; "": "tgr-bot"
	// AppID makes the server know a GitHub App of that id, installed in every repository. Its private key is not
	// checked: any JWT that names the App gets an installation token.
	AppID int64
	// AppRepos are the repositories, owner/name, that the App is installed in; nil: all.
	AppRepos []string
	// AppPermissions are what the App's installation may do; nil: those of [AppPermissions].
	AppPermissions map[string]string
	Log            *slog.Logger
	Now            func() time.Time
}

// Server is the stand-in. Its methods are safe for concurrent use.
type Server struct {
	// URL is the base of everything: repositories are at URL/owner/name.git, the API is at URL/api/v3/.
	URL string

	c      Config
	http   *http.Server
	served chan struct{}
	temp   bool
	git    *cgi.Handler

	mu     sync.Mutex
	repos  map[string]*Repo // by full name
	nextID int64
	tokens []*InstallationToken // that were given out
	faults []*Fault
	seen   []Request
	record records
}

// Request is one request that the server got, whether it was answered or not.
type Request struct {
	Time   time.Time
	Method string
	Path   string
	Status int // of the answer; 0: the connection was dropped
}

// New starts a server. The caller closes it.
func New(c Config) (*Server, error) {
	s := &Server{c: c, served: make(chan struct{}), repos: make(map[string]*Repo), nextID: 1000,
		record: records{make(map[string][]*Status), make(map[string][]*CheckRun), make(map[string][]*Comment), make(map[string][]*Pull)}}
	if s.c.Addr == "" {
		s.c.Addr = "127.0.0.1:0"
	}
	if s.c.Login == "" {
		s.c.Login = "tgr-bot"
	}
	if s.c.Log == nil {
		s.c.Log = slog.New(slog.DiscardHandler)
	}
	if s.c.Now == nil {
		s.c.Now = time.Now
	}
	out, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		return nil, err
	}
	if s.c.Dir == "" {
		if s.c.Dir, err = os.MkdirTemp("", "githubtest-"); err != nil {
			return nil, err
		}
		s.temp = true
	}
	if s.c.Dir, err = filepath.Abs(s.c.Dir); err != nil {
		return nil, err
	}
	s.git = &cgi.Handler{
		Path:   filepath.Join(strings.TrimSpace(string(out)), "git-http-backend"),
		Stderr: io.Discard, // what git refuses, its client says too
		Env: append(gitEnv(), "GIT_PROJECT_ROOT="+s.c.Dir, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=git",
			"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"),
	}
	l, err := net.Listen("tcp", s.c.Addr)
	if err != nil {
		s.removeTemp()
		return nil, err
	}
	s.URL = "http://" + l.Addr().String()
	s.http = &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		defer close(s.served)
		s.http.Serve(l) // returns when Close is called
	}()
	return s, nil
}

// API is the base URL of the REST API, as a client of GitHub Enterprise is given it.
func (s *Server) API() string { return s.URL + "/api/v3/" }

// Close stops the server and removes its temporary files. It is idempotent.
func (s *Server) Close() error {
	err := s.http.Close()
	<-s.served
	return errors.Join(err, s.removeTemp())
}

func (s *Server) removeTemp() error {
	if !s.temp {
		return nil
	}
	return os.RemoveAll(s.c.Dir)
}

// Requests returns everything that was asked of the server, in order.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Request(nil), s.seen...)
}

// statusWriter remembers the status of an answer.
type statusWriter struct {
	http.ResponseWriter
	status int
}

// WriteHeader remembers and passes on.
func (w *statusWriter) WriteHeader(code int) {
	w.status = code
	w.ResponseWriter.WriteHeader(code)
}

// ServeHTTP answers git and the REST API.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	sw := &statusWriter{ResponseWriter: w, status: http.StatusOK}
	defer func() {
		if p := recover(); p != nil { // a dropped connection, on purpose
			sw.status = 0
			defer panic(p)
		}
		s.mu.Lock()
		s.seen = append(s.seen, Request{s.c.Now(), r.Method, r.URL.Path, sw.status})
		s.mu.Unlock()
		s.c.Log.Debug("request", "method", r.Method, "path", r.URL.Path, "status", sw.status)
	}()
	if s.fault(sw, r) {
		return
	}
	if path, ok := strings.CutPrefix(r.URL.Path, "/api/v3/"); ok {
		s.api(sw, r, path)
		return
	}
	s.serveGit(sw, r)
}

func (s *Server) serveGit(w http.ResponseWriter, r *http.Request) {
	parts := strings.SplitN(strings.TrimPrefix(r.URL.Path, "/"), "/", 3)
	if len(parts) < 3 {
		http.NotFound(w, r)
		return
	}
	name := strings.TrimSuffix(parts[1], ".git")
	repo := s.Repo(parts[0] + "/" + name)
	if repo == nil {
		http.NotFound(w, r)
		return
	}
	if repo.private.Load() && (s.c.Token != "" || s.c.AppID != 0) {
		if _, password, ok := r.BasicAuth(); !ok || !s.knows(password, repo.FullName) {
			w.Header().Set("WWW-Authenticate", `Basic realm="githubtest"`)
			http.Error(w, "authentication required", http.StatusUnauthorized)
			return
		}
	}
	// The repository may be asked for without its suffix, as on GitHub.
	r2 := r.Clone(r.Context())
	r2.URL.Path = "/" + parts[0] + "/" + name + ".git/" + parts[2]
	s.git.ServeHTTP(w, r2)
}

// knows reports whether a token is the configured one, or one of the installation that may read the repository.
func (s *Server) knows(token, repo string) bool {
	if s.c.Token != "" && subtle.ConstantTimeCompare([]byte(token), []byte(s.c.Token)) == 1 {
		return true
	}
	t := s.installationToken(token)
	return t != nil && t.may(repo, "contents", "read")
}

// Fault is something that goes wrong with requests. Script starts it.
type Fault struct {
	Method string        // "": any
	Path   string        // a part of the path; "": any
	Times  int           // how many requests it befalls; 0: one
	Delay  time.Duration // before the answer
	Drop   bool          // cut the connection instead of answering
	Status int           // answer with this status; 0: answer as usual, after Delay
	Header http.Header   // of that answer: Retry-After, X-RateLimit-Remaining, …
	Body   string        // of that answer
}

// Script makes the next matching requests fail. Faults are used up in the order in which they were scripted.
func (s *Server) Script(f Fault) {
	if f.Times == 0 {
		f.Times = 1
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, &f)
}

// Unscript forgets the faults that have not been used up.
func (s *Server) Unscript() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
}

// fault applies the first scripted fault that matches; true: the request was answered.
func (s *Server) fault(w http.ResponseWriter, r *http.Request) bool {
	s.mu.Lock()
	var hit *Fault
	for _, f := range s.faults {
		if f.Times > 0 && (f.Method == "" || f.Method == r.Method) && strings.Contains(r.URL.Path, f.Path) {
			f.Times--
			hit = f
			break
		}
	}
	s.mu.Unlock()
	if hit == nil {
		return false
	}
	if hit.Delay > 0 {
		ctx, cancel := context.WithTimeout(r.Context(), hit.Delay)
		<-ctx.Done()
		cancel()
	}
	if hit.Drop {
		panic(http.ErrAbortHandler)
	}
	if hit.Status == 0 {
		return false
	}
	for k, v := range hit.Header {
		w.Header()[http.CanonicalHeaderKey(k)] = v
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(hit.Status)
	body := hit.Body
	if body == "" {
		body = `{"message":"scripted fault"}`
	}
	w.Write([]byte(body))
	return true
}
