package web

import (
	"net/http"
	"slices"
	"strings"

	"github.com/terraphim/tgr"
)

// kind is what a route needs of a request, and how it says no.
type kind int

const (
	open   kind = iota // everyone: health, metrics, static files
	page               // HTML for whoever may read
	read               // JSON, text or events for whoever may read
	change             // changes something
)

// route is one path of the server.
type route struct {
	method, path string
	kind         kind
	query        []string // the query parameters that it knows; any other is refused
	serve        func(*Server, http.ResponseWriter, *request) error
}

// routes are all paths but those of the webhook and of the issuer of identity tokens, which are not ours. The OpenAPI document lists those under /api and
// the open ones.
func routes() []route {
	return []route{
		{"GET", "/healthz", open, nil, (*Server).healthz},
		{"GET", "/readyz", open, nil, (*Server).readyz},
		{"GET", "/metrics", open, nil, (*Server).metrics},
		{"GET", "/static/{file}", open, nil, (*Server).static},

		{"GET", "/{$}", page, append([]string{"before"}, filters...), (*Server).runsPage},
		{"GET", "/runs/{id}", page, []string{"attempt"}, (*Server).runPage},
		{"GET", "/jobs/{id}", page, []string{"from"}, (*Server).jobPage},
		{"GET", "/insights", page, []string{"repo", "forks"}, (*Server).insightsPage},

		{"GET", "/api/openapi.json", read, nil, (*Server).openapi},
		{"GET", "/api/runs", read, append([]string{"limit", "before"}, filters...), (*Server).listRuns},
		{"GET", "/api/runs/{id}", read, []string{"attempt"}, (*Server).getRun},
		{"GET", "/api/runs/{id}/plan", read, nil, (*Server).getPlan},
		{"GET", "/api/runs/{id}/artifacts", read, nil, (*Server).listArtifacts},
		{"GET", "/api/artifacts/{id}", read, nil, (*Server).downloadArtifact},
		{"GET", "/api/runs/{id}/events", read, nil, (*Server).runEvents},
		{"POST", "/api/runs/{id}/cancel", change, nil, (*Server).cancel},
		{"POST", "/api/runs/{id}/rerun", change, nil, (*Server).rerun},
		{"POST", "/api/runs/{id}/questions", change, nil, (*Server).ask},
		{"POST", "/api/runs/{id}/approve", change, nil, (*Server).approve},
		{"GET", "/api/jobs/{id}", read, nil, (*Server).getJob},
		{"GET", "/api/jobs/{id}/log", read, []string{"try", "from", "step", "timestamps"}, (*Server).getLog},
		{"GET", "/api/jobs/{id}/log/stream", read, []string{"from", "spans"}, (*Server).streamLog},
		{"POST", "/api/dispatch", change, nil, (*Server).dispatch},
		{"GET", "/api/insights", read, []string{"repo", "forks", "command"}, (*Server).insights},

		{"GET", "/api/schedules", read, []string{"repo"}, (*Server).listSchedules},

		{"GET", "/api/secrets", read, scopes, listSettings(Secret)},
		{"POST", "/api/secrets", change, nil, changeSetting(Secret, false)},
		{"POST", "/api/secrets/remove", change, nil, changeSetting(Secret, true)},
		{"POST", "/api/secrets/rotate", change, nil, (*Server).rotateKey},
		{"GET", "/api/variables", read, scopes, listSettings(Variable)},
		{"POST", "/api/variables", change, nil, changeSetting(Variable, false)},
		{"POST", "/api/variables/remove", change, nil, changeSetting(Variable, true)},
		{"GET", "/api/environments", read, []string{"repo"}, (*Server).listEnvironments},
		{"POST", "/api/environments", change, nil, (*Server).setEnvironment},
		{"POST", "/api/environments/remove", change, nil, (*Server).removeEnvironment},
	}
}

// scopes are the query parameters that choose a scope of settings.
var scopes = []string{"owner", "repo", "environment"}

// filters are the query parameters that choose runs.
var filters = []string{"repo", "workflow", "branch", "event", "status", "delivery"}

// request is an admitted request.
type request struct {
	*http.Request
	access access
}

func (s *Server) mux() *http.ServeMux {
	mux := http.NewServeMux()
	for _, rt := range routes() {
		mux.Handle(rt.method+" "+rt.path, s.handle(rt))
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { s.noRoute(mux, w, r) })
	if s.cfg.Webhook != nil {
		mux.Handle("POST /webhook", s.cfg.Webhook)
	}
	if s.cfg.Issuer != nil {
		mux.Handle("GET /oidc/", s.cfg.Issuer)
	}
	return mux
}

// handle wraps a route in what all routes of its kind need: who may, which parameters, how errors look.
func (s *Server) handle(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		req := &request{Request: r}
		err := s.check(rt, req)
		if err == nil {
			err = rt.serve(s, w, req)
		}
		switch {
		case err == nil:
		case rt.kind == page:
			s.failPage(w, r, err)
		default:
			s.fail(w, r, err)
		}
	})
}

func (s *Server) check(rt route, r *request) (err error) {
	if rt.kind == open {
		return nil
	}
	if r.access, err = s.admit(r.Request); err != nil {
		return err
	}
	if rt.kind == change {
		if err := s.mayChange(r.Request, r.access); err != nil {
			return err
		}
	}
	for name, values := range r.URL.Query() {
		if !slices.Contains(rt.query, name) {
			return invalid("%s has no parameter %q; it has: %s", rt.path, cut(name, 50), strings.Join(rt.query, ", "))
		}
		if len(values) > 1 {
			return invalid("the parameter %s is given %d times", name, len(values))
		}
	}
	return nil
}

// noRoute answers what no route matches: 405 where another method would have matched, else 404.
func (s *Server) noRoute(mux *http.ServeMux, w http.ResponseWriter, r *http.Request) {
	for _, method := range []string{"GET", "POST"} {
		probe := *r
		probe.Method = method
		if _, pattern := mux.Handler(&probe); pattern != "/" {
			w.Header().Set("Allow", method)
			err := tgr.Errorf("web", tgr.Invalid, "%s takes %s, not %s", r.URL.Path, method, cut(r.Method, 20))
			s.fail(w, r, &refusal{http.StatusMethodNotAllowed, err})
			return
		}
	}
	err := tgr.Errorf("web", tgr.NotFound, "there is nothing at %s", cut(r.URL.Path, 200))
	if strings.HasPrefix(r.URL.Path, "/api/") {
		s.fail(w, r, err)
		return
	}
	s.failPage(w, r, err)
}

// cut shortens what a caller sent, for a message.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}
