package results

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/terraphim/tgr"
)

// Job is the job that a Session serves.
type Job struct {
	tgr.Redacted

	Run   tgr.Run   // with its Event, which says whose caches it may read and write
	ID    tgr.JobID //
	Lease string    // secret of this one try: a token that was made for another try is void
	// IDToken says that the job may ask for identity tokens: permissions has id-token: write.
	IDToken     bool
	Environment string // the deployment environment, for identity tokens; "": none
	// WorkflowRef and WorkflowSHA name the file that the job is written in, owner/name/path@ref and its commit; "": the
	// run's own workflow.
	WorkflowRef, WorkflowSHA string
	CacheMode                string // none, read, write or write-only; "": both, as far as the event is trusted
	Runs                     Runs   // what the job may read of other runs
	// Hides reports whether a name holds a secret of the job; what it is to name is refused. nil: none does.
	Hides func(name string) bool
}

// repo is the identity of the repository: its number, or its name where there is none, as in a working tree.
func (j *Job) repo() string { return repoKey(j.Run.Event.Repo) }

func repoKey(r tgr.Repo) string {
	if r.ID == 0 {
		return "name:" + strings.ToLower(r.FullName)
	}
	return strconv.FormatInt(r.ID, 10)
}

// Session is the services of one job. Only that job may reach what Serve listens on.
type Session struct {
	s      *Service
	job    Job
	access access
	http   *http.Server
	sent   atomic.Int64 // bytes of uploads
	over   atomic.Bool
	ends   sync.Once
	calls  sync.WaitGroup // Serve

	follows followers // of artifacts

	vouching sync.Mutex // held while GitHub is asked
	vouches  map[[sha256.Size]byte]error
}

// Begin starts the services of a job. The caller closes the Session when the job has ended.
func (s *Service) Begin(ctx context.Context, j Job) (*Session, error) {
	if j.Lease == "" || j.ID == 0 || j.Run.ID == 0 {
		return nil, tgr.Errorf("results.begin", tgr.Invalid, "a job without an id, a run or a lease")
	}
	switch j.CacheMode {
	case "", "none", "read", "write", "write-only":
	default:
		return nil, tgr.Errorf("results.begin", tgr.Workflow, "cache-mode is '%s', and has to be none, read, write or write-only", j.CacheMode)
	}
	stopping := tgr.Errorf("results.begin", tgr.Unavailable, "the services are stopping")
	if s.isClosed() {
		return nil, stopping
	}
	x := &Session{s: s, job: j, access: accessOf(&j)}
	sent, err := s.meta.sentBy(ctx, int64(j.ID))
	if err != nil {
		return nil, err
	}
	x.sent.Store(sent)
	x.http = &http.Server{
		Handler: x.routes(), ReadHeaderTimeout: s.cfg.Limits.Idle, IdleTimeout: s.cfg.Limits.Idle, MaxHeaderBytes: 64 << 10,
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, stopping
	}
	s.sessions[x] = true
	return x, nil
}

// Serve answers the job on l, which only the job reaches, until the Session is closed or l fails. Serve owns l. It may
// be called for several listeners.
func (x *Session) Serve(l net.Listener) error {
	x.s.mu.Lock()
	if x.over.Load() {
		x.s.mu.Unlock()
		return l.Close()
	}
	x.calls.Add(1)
	x.s.mu.Unlock()
	defer x.calls.Done()
	err := x.http.Serve(l)
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Handler answers the job's requests, for who brings a server of his own.
func (x *Session) Handler() http.Handler { return x.http.Handler }

// halt ends the session and leaves what it uploaded.
func (x *Session) halt() {
	x.ends.Do(func() {
		x.s.mu.Lock()
		x.over.Store(true)
		delete(x.s.sessions, x)
		x.s.mu.Unlock()
		x.http.Close()
		x.calls.Wait()
		x.follows.close()
	})
}

// Close ends the session: the job's tokens and addresses are void, and uploads that it did not finish are removed. It is
// idempotent.
func (x *Session) Close() error {
	x.halt()
	if x.s.served()[int64(x.job.ID)] { // by another try of the job, which this one did not know of: its end is that of all uploads
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	left, err := find(ctx, x.s.meta.r, "WHERE job = ? AND state <> 'done'", x.job.ID)
	if err != nil {
		return fmt.Errorf("close the services of job %d: %w", x.job.ID, err)
	}
	var ids []int64
	for _, b := range left {
		ids = append(ids, b.id)
	}
	return x.s.remove(ctx, ids...)
}

// Env is the environment that tells the toolkit where the services are. address is how the job reaches what Serve
// listens on: host and port. Only actions may have the variables, but for those whose names begin with
// ACTIONS_ID_TOKEN_REQUEST_, which are there when the job may ask for identity tokens.
func (x *Session) Env(address string) (map[string]string, error) {
	token, err := x.token(forRuntime)
	if err != nil {
		return nil, err
	}
	base := "http://" + address + "/" // a slash at its end: cache v1 appends to it
	env := map[string]string{
		"ACTIONS_RUNTIME_URL": base, "ACTIONS_RUNTIME_TOKEN": token, "ACTIONS_RESULTS_URL": base, "ACTIONS_CACHE_URL": base,
		"ACTIONS_CACHE_SERVICE_V2": "True",
	}
	if x.job.CacheMode != "" {
		env["ACTIONS_CACHE_MODE"] = x.job.CacheMode
	}
	if x.mayIdentify() {
		if token, err = x.token(forIdentity); err != nil {
			return nil, err
		}
		// The client appends &audience=…
		env["ACTIONS_ID_TOKEN_REQUEST_URL"], env["ACTIONS_ID_TOKEN_REQUEST_TOKEN"] = base+"oidc/token?api-version=2.0", token
	}
	return env, nil
}

func (x *Session) mayIdentify() bool { return x.job.IDToken && x.s.cfg.Issuer != "" }

// routes is everything that a job may ask for.
func (x *Session) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /twirp/{service}/{method}", x.twirp)
	mux.HandleFunc("GET /_apis/artifactcache/cache", x.v1(x.v1Get))
	mux.HandleFunc("GET /_apis/artifactcache/caches", x.v1(x.v1List))
	mux.HandleFunc("POST /_apis/artifactcache/caches", x.v1(x.v1Reserve))
	mux.HandleFunc("PATCH /_apis/artifactcache/caches/{id}", x.v1(x.v1Upload))
	mux.HandleFunc("POST /_apis/artifactcache/caches/{id}", x.v1(x.v1Commit))
	mux.HandleFunc("GET /oidc/token", x.v1(x.identify))
	mux.HandleFunc("PUT /blob/{id}", x.put)
	mux.HandleFunc("GET /blob/{id}", x.get) // and HEAD
	x.restRoutes(mux)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, tgr.Errorf("results", tgr.NotFound, "there is no %s %s", r.Method, clip(r.URL.Path, 100)))
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if x.over.Load() {
			fail(w, errOver)
			return
		}
		rc := http.NewResponseController(w)
		rc.SetWriteDeadline(time.Time{}) // of a download that the connection carried before
		r.Body = &slowly{rc, r.Body, x.s.cfg.Limits.Idle}
		mux.ServeHTTP(w, r)
	})
}

var errOver = tgr.Errorf("results", tgr.Unauthorized, "the job has ended")

// slowly is the body of a request whose sender has to keep going.
type slowly struct {
	rc     *http.ResponseController
	body   io.ReadCloser
	within time.Duration
}

func (b *slowly) Read(p []byte) (int, error) {
	b.rc.SetReadDeadline(time.Now().Add(b.within)) // not all connections have one
	return b.body.Read(p)
}

// Close closes the body.
func (b *slowly) Close() error { return b.body.Close() }
