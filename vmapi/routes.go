package vmapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/vm"
)

// route is one path of the server.
type route struct {
	method, path string
	open         bool     // needs no token
	once         bool     // takes an Idempotency-Key
	query        []string // the parameters that it knows; any other is refused
	serve        func(*Server, http.ResponseWriter, *request) error
}

// routeTable is all paths. The OpenAPI document lists the same.
func routeTable() []route {
	return []route{
		{"GET", "/health", true, false, nil, (*Server).health},
		{"GET", "/api/openapi.json", true, false, nil, (*Server).openapi},
		{"GET", "/api/vms", false, false, nil, (*Server).list},
		{"POST", "/api/vms", false, true, nil, (*Server).create},
		{"GET", "/api/vms/{id}", false, false, []string{"wait_seconds"}, (*Server).get},
		{"DELETE", "/api/vms/{id}", false, false, []string{"outcome"}, (*Server).remove},
		{"POST", "/api/vms/{id}/lease", false, false, nil, (*Server).lease},
		{"POST", "/api/vms/{id}/pause", false, false, nil, (*Server).pause},
		{"POST", "/api/vms/{id}/resume", false, false, nil, (*Server).resume},
		{"POST", "/api/vms/{id}/outcome", false, false, nil, (*Server).outcome},
		{"POST", "/api/vms/{id}/exec", false, false, nil, (*Server).exec},
		{"POST", "/api/vms/{id}/exec/{exec}/stdin", false, false, nil, (*Server).stdin},
		{"POST", "/api/vms/{id}/exec/{exec}/resize", false, false, nil, (*Server).resize},
		{"POST", "/api/vms/{id}/exec/{exec}/cancel", false, false, nil, (*Server).cancelExec},
		{"POST", "/api/vms/{id}/ports", false, false, []string{"addr"}, (*Server).ports},
		{"PUT", "/api/vms/{id}/files", false, false, []string{"path"}, (*Server).putFiles},
		{"GET", "/api/vms/{id}/files", false, false, []string{"path"}, (*Server).getFiles},
		{"GET", "/api/vms/{id}/snapshots", false, false, nil, (*Server).listSnapshots},
		{"POST", "/api/vms/{id}/snapshots", false, true, nil, (*Server).snapshot},
		{"POST", "/api/vms/{id}/rollback/{snapshot}", false, true, nil, (*Server).rollback},
		{"GET", "/api/vms/{id}/history", false, false, []string{"limit", "failures_only"}, (*Server).getHistory},
		{"POST", "/api/llm/execute", false, true, nil, (*Server).execute},
	}
}

// request is an admitted request.
type request struct {
	*http.Request
	user    string
	control *http.ResponseController
}

func (s *Server) routes() *http.ServeMux {
	mux := http.NewServeMux()
	methods := map[string][]string{}
	for _, rt := range routeTable() {
		mux.Handle(rt.method+" "+rt.path, s.handle(rt))
		methods[rt.path] = append(methods[rt.path], rt.method)
	}
	for path, known := range methods {
		slices.Sort(known)
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Allow", strings.Join(known, ", "))
			s.fail(w, r, errorf(http.StatusMethodNotAllowed, "invalid", "%s takes %s, not %s", cut(r.URL.Path, 200), strings.Join(known, " and "), cut(r.Method, 20)))
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, errorf(http.StatusNotFound, "not_found", "there is nothing at %s", cut(r.URL.Path, 200)))
	})
	return mux
}

// handle wraps a route in what all need: who may, which parameters, replays, and how errors look.
func (s *Server) handle(rt route) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		req := &request{Request: r, control: http.NewResponseController(w)}
		err := s.check(rt, req)
		switch {
		case err != nil:
		case rt.once && r.Header.Get("Idempotency-Key") != "":
			err = s.replay(w, req, rt)
		default:
			err = rt.serve(s, w, req)
		}
		if err != nil {
			s.fail(w, r, err)
		}
	}
}

func (s *Server) check(rt route, r *request) error {
	if !rt.open {
		claims, err := admit(s.cfg.Key, r.Request)
		if err != nil {
			return err
		}
		r.user = claims.user()
	}
	for name, values := range r.URL.Query() {
		if !slices.Contains(rt.query, name) {
			return invalid("%s has no parameter %q", rt.path, cut(name, 50))
		}
		if len(values) > 1 {
			return invalid("the parameter %s is given %d times", name, len(values))
		}
	}
	return nil
}

func invalid(format string, args ...any) *Error {
	return errorf(http.StatusBadRequest, "invalid", format, args...)
}

// fail answers with an error. What only the operator may know goes to the log.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	e := asError(err)
	if e.Status >= 500 && r.Context().Err() == nil {
		s.log.Warn("request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(e.RetryAfter.Seconds()))))
	}
	if e.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="tgr"`)
	}
	s.json(w, e.Status, ErrorBody{Error: e.Message, Code: e.Code})
}

// asError turns any error into one that may be shown.
func asError(err error) *Error {
	var e *Error
	var tooLarge *http.MaxBytesError
	var remote *guest.RemoteError
	var infra *vm.InfraError
	switch {
	case errors.As(err, &e):
		return e
	case errors.As(err, &tooLarge):
		return errorf(http.StatusRequestEntityTooLarge, "invalid", "the body is larger than %d bytes", tooLarge.Limit)
	case errors.Is(err, vm.ErrSessionState):
		return errorf(http.StatusConflict, "conflict", "%v", err)
	case errors.As(err, &remote):
		return guestError(err)
	case errors.Is(err, guest.ErrLost), errors.Is(err, guest.ErrProtocol):
		return errorf(http.StatusBadGateway, "lost", "%v", err)
	case errors.As(err, &infra):
		return errorf(http.StatusServiceUnavailable, "unavailable", "%v", err)
	default:
		return errorf(http.StatusInternalServerError, "internal", "%v", err)
	}
}

// guestError is what the agent says went wrong, which is the caller's business.
func guestError(err error) *Error {
	status, code := http.StatusUnprocessableEntity, "guest"
	for _, k := range []struct {
		is     error
		status int
		code   string
	}{
		{fs.ErrNotExist, http.StatusNotFound, "not_exist"}, {fs.ErrExist, http.StatusConflict, "exist"},
		{fs.ErrPermission, http.StatusForbidden, "permission"}, {guest.ErrRefused, http.StatusUnprocessableEntity, "refused"},
	} {
		if errors.Is(err, k.is) {
			status, code = k.status, k.code
			break
		}
	}
	return errorf(status, code, "%v", err)
}

// json answers with v. It is encoded before the first byte is sent, so that a failure is an answer too.
func (s *Server) json(w http.ResponseWriter, status int, v any) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		s.log.Error("encode an answer", "error", err)
		http.Error(w, `{"error":"internal error","code":"internal"}`, http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(b.Bytes()) // an error means that the client has gone
}

// body reads a request's JSON, whose fields must all be known. An empty body is no request at all, unless optional.
func body(r *request, v any, optional bool) error {
	r.control.SetReadDeadline(time.Now().Add(30 * time.Second)) // one that cannot, cannot be held up either
	defer r.control.SetReadDeadline(time.Time{})
	b, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxRequest))
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return err
		}
		return invalid("the body cannot be read: %v", err)
	}
	if len(bytes.TrimSpace(b)) == 0 && optional {
		return nil
	}
	if err := decodeStrict(b, v); err != nil {
		return invalid("the body is not what is expected: %v", err)
	}
	return nil
}

func decodeStrict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is more after the JSON")
	}
	return nil
}

// seconds reads a parameter that is a number of seconds.
func (r *request) seconds(name string, most int) (time.Duration, error) {
	n, err := r.number(name, 0, most)
	return time.Duration(n) * time.Second, err
}

func (r *request) number(name string, otherwise, most int) (int, error) {
	v := r.URL.Query().Get(name)
	if v == "" {
		return otherwise, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 || n > most {
		return 0, invalid("the parameter %s is %q: expected a whole number from 0 to %d", name, cut(v, 50), most)
	}
	return n, nil
}

func (s *Server) health(w http.ResponseWriter, _ *request) error {
	h := Health{Service: "tgr-vmd", Status: "healthy", Timestamp: time.Now().UTC(), Version: s.cfg.Version,
		Features: []string{FeatureExec, FeatureFiles, FeatureLeases, FeaturePorts}}
	s.json(w, http.StatusOK, h)
	return nil
}

func (s *Server) openapi(w http.ResponseWriter, _ *request) error {
	w.Header().Set("Content-Type", "application/json")
	w.Write(openapiJSON)
	return nil
}

func (s *Server) list(w http.ResponseWriter, r *request) error {
	vms := s.all()
	stats := s.sessions.Stats()
	percent := 100 * float64(stats.Open) / float64(s.cfg.Max)
	s.json(w, http.StatusOK, List{
		User: r.user, Total: len(vms), Tiers: map[string]string{"donation": "none", "subscription": "none"}, VMs: vms,
		Usage: Usage{AtCapacity: stats.Open >= s.cfg.Max, CurrentVMs: stats.Open, MaxVMs: s.cfg.Max, VMUsagePercent: percent,
			CurrentSessions: stats.Open, MaxSessions: s.cfg.Max, SessionUsagePercent: percent,
			MaxMemoryMB: int(s.cfg.MaxMemory >> 20), MaxStorageGB: 0, Sessions: stats},
	})
	return nil
}

func (s *Server) create(w http.ResponseWriter, r *request) error {
	var req CreateRequest
	if err := body(r, &req, true); err != nil {
		return err
	}
	if err := s.checkCreate(&req); err != nil {
		return err
	}
	m, err := s.start(r.Context(), req, r.user)
	if err != nil {
		return err
	}
	s.waitFor(r, m, time.Duration(req.WaitSeconds)*time.Second)
	w.Header().Set("Location", "/api/vms/"+m.id)
	s.json(w, http.StatusCreated, m.view())
	return nil
}

// maxWait is how long an answer waits for a machine at most, seconds.
const maxWait = 300

func (s *Server) checkCreate(req *CreateRequest) error {
	if req.Name == "" {
		req.Name = req.VMName
	}
	if len(req.Labels) > 16 {
		return invalid("%d labels: expected at most 16", len(req.Labels))
	}
	for _, text := range append([]string{req.Name, req.VMName, req.VMType}, req.Labels...) {
		if len(text) > maxLabel {
			return invalid("a name, type or label of %d bytes, the limit is %d", len(text), maxLabel)
		}
	}
	switch mb := s.cfg.MaxMemory >> 20; {
	case req.VCPUs < 0 || req.VCPUs > s.cfg.MaxCPUs:
		return invalid("vcpus is %d: this server gives 1 to %d", req.VCPUs, s.cfg.MaxCPUs)
	case req.MemoryMB != 0 && (req.MemoryMB < 128 || int64(req.MemoryMB) > mb):
		return invalid("memory_mb is %d: this server gives 128 to %d", req.MemoryMB, mb)
	case req.WaitSeconds < 0 || req.WaitSeconds > maxWait:
		return invalid("wait_seconds is %d: expected 0 to %d", req.WaitSeconds, maxWait)
	}
	return checkLease(req.LeaseSeconds)
}

func checkLease(seconds int) error {
	if most := int(maxTimeout / time.Second); seconds < 0 || seconds > most {
		return invalid("a lease of %d seconds: expected 0 to %d", seconds, most)
	}
	return nil
}

func (s *Server) waitFor(r *request, m *machine, d time.Duration) {
	if d <= 0 {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), d)
	defer cancel()
	m.wait(ctx)
}

func (s *Server) get(w http.ResponseWriter, r *request) error {
	m, err := s.find(r.PathValue("id"))
	if err != nil {
		return err
	}
	wait, err := r.seconds("wait_seconds", maxWait)
	if err != nil {
		return err
	}
	s.waitFor(r, m, wait)
	s.json(w, http.StatusOK, m.view())
	return nil
}

// remove frees a machine, and answers when nothing is left of it.
func (s *Server) remove(w http.ResponseWriter, r *request) error {
	m, err := s.find(r.PathValue("id"))
	if err != nil {
		return err
	}
	if err := m.judge(r.URL.Query().Get("outcome"), true); err != nil {
		return err
	}
	m.stop(&stopped{"deleted by " + r.user})
	select {
	case <-m.freed:
	case <-r.Context().Done():
		return context.Cause(r.Context())
	}
	v := m.view()
	s.json(w, http.StatusOK, Deleted{ID: m.id, Status: v.Status, State: v.State})
	return nil
}

// outcome notes how what the machine was for ended; the machine stays.
func (s *Server) outcome(w http.ResponseWriter, r *request) error {
	m, err := s.find(r.PathValue("id"))
	if err != nil {
		return err
	}
	var req OutcomeRequest
	if err := body(r, &req, false); err != nil {
		return err
	}
	if req.Outcome == "" {
		return invalid("no outcome: expected completed or failed")
	}
	if err := m.judge(req.Outcome, false); err != nil {
		return err
	}
	s.json(w, http.StatusOK, m.view())
	return nil
}

// judge notes an outcome. With late, a session whose state does not allow it keeps what it has.
func (m *machine) judge(outcome string, late bool) error {
	events := map[string]vm.SessionEvent{"completed": vm.SessionComplete, "failed": vm.SessionFail}
	e, ok := events[outcome]
	if outcome == "" {
		return nil
	}
	if !ok {
		return invalid("the outcome is %q: expected completed or failed", cut(outcome, 50))
	}
	if err := m.session.Apply(e); err != nil && !late {
		return err
	}
	return nil
}

func (s *Server) lease(w http.ResponseWriter, r *request) error {
	m, err := s.find(r.PathValue("id"))
	if err != nil {
		return err
	}
	var req LeaseRequest
	if err := body(r, &req, false); err != nil {
		return err
	}
	if err := checkLease(req.Seconds); err != nil {
		return err
	}
	if err := m.lease(time.Duration(req.Seconds) * time.Second); err != nil {
		return err
	}
	s.json(w, http.StatusOK, m.view())
	return nil
}

func (s *Server) getHistory(w http.ResponseWriter, r *request) error {
	m, err := s.find(r.PathValue("id"))
	if err != nil {
		return err
	}
	limit, err := r.number("limit", 100, maxHistory)
	if err != nil {
		return err
	}
	failures := r.URL.Query().Get("failures_only")
	if !slices.Contains([]string{"", "true", "false", "1", "0"}, failures) {
		return invalid("failures_only is %q: expected true or false", cut(failures, 20))
	}
	m.mu.Lock()
	entries, total := m.history.list(limit, failures == "true" || failures == "1")
	m.mu.Unlock()
	s.json(w, http.StatusOK, History{VMID: m.id, History: entries, Entries: entries, Total: total})
	return nil
}

// usable returns the machine of a request, and why it cannot be used.
func (s *Server) usable(id string) (*machine, error) {
	m, err := s.find(id)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	state := m.state
	m.mu.Unlock()
	if !state.usable() {
		return nil, m.not("used")
	}
	return m, nil
}

// label checks a name that a caller chose.
func label(what, s string) error {
	if s == "" || len(s) > maxLabel || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == '/' }) {
		return fmt.Errorf("%s %q: expected 1 to %d visible ASCII characters without a slash", what, cut(s, 50), maxLabel)
	}
	return nil
}
