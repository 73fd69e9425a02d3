package web

import (
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/terraphim/tgr"
)

// RunList is the answer to GET /api/runs.
type RunList struct {
	Runs []tgr.Run `json:"runs"`
	Next tgr.RunID `json:"next,omitempty"` // value of before for the next page; absent on the last
}

// RunDetail is the answer to GET /api/runs/{id}: a run and the jobs of one attempt.
type RunDetail struct {
	tgr.Run
	Attempts []int     `json:"attempts"` // numbers of all attempts
	Jobs     []tgr.Job `json:"jobs"`     // of the attempt that was asked for: the latest unless ?attempt= says otherwise

	Notes *tgr.Notes `json:"notes,omitempty"` // how its workflow was read, and why its jobs failed
}

// Ask is the body of POST /api/runs/{id}/questions.
type Ask struct {
	Question string `json:"question"`
}

// Accepted is the answer to a change: it has been noted and happens later.
type Accepted struct {
	Message string      `json:"message"`
	Runs    []tgr.RunID `json:"run_ids"`
	Attempt int         `json:"run_attempt,omitempty"` // of a rerun
}

// CancelRequest is the body of POST /api/runs/{id}/cancel. An empty body cancels the whole run.
type CancelRequest struct {
	Job    tgr.JobID `json:"job_id,omitempty"` // 0: the whole run
	Reason string    `json:"reason,omitempty"` // shown to whoever asks why
	By     string    `json:"by,omitempty"`     // who asked: shown, not trusted
}

// Health is the answer to GET /healthz and GET /readyz.
type Health struct {
	Status  string            `json:"status"` // ok, or unavailable
	Version string            `json:"version"`
	Parts   map[string]string `json:"parts,omitempty"` // of /readyz: ok, or what is wrong with it
}

//go:embed openapi.json
var openapiJSON []byte

// The bounds of a request's body and of what it may hold.
const (
	maxBody   = 256 << 10
	maxInputs = 25    // GitHub's limit for workflow_dispatch
	maxInput  = 65535 // characters of all inputs: likewise
	maxText   = 500   // characters of a reason
	maxName   = 255
)

// nobody is who asked for a change when the request does not say.
const nobody = "someone over the API"

// runStatuses are the values that the filter status takes. Nothing writes to them.
var runStatuses = []string{string(tgr.Pending), string(tgr.Queued), string(tgr.InProgress), string(tgr.Completed)}

// repoName is owner/name; the server that it names is decided elsewhere.
var repoName = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]{0,99}/[A-Za-z0-9._-]{1,100}$`)
})

func (s *Server) healthz(w http.ResponseWriter, r *request) error {
	s.json(w, r.Request, http.StatusOK, Health{Status: "ok", Version: s.cfg.Version})
	return nil
}

// readyTimeout is how long a part may take to say that it works.
const readyTimeout = 5 * time.Second

// readyz asks all parts at once. A part that does not answer in time does not work.
func (s *Server) readyz(w http.ResponseWriter, r *request) error {
	ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
	defer cancel()
	names := slices.Sorted(maps.Keys(s.cfg.Ready))
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() { errs[i] = s.cfg.Ready[name](ctx) })
	}
	wg.Wait()
	h := Health{Status: "ok", Version: s.cfg.Version, Parts: map[string]string{}}
	status := http.StatusOK
	for i, name := range names {
		h.Parts[name] = "ok"
		if errs[i] != nil {
			h.Parts[name] = tgr.MessageOf(errs[i])
			h.Status, status = "unavailable", http.StatusServiceUnavailable
			s.log.Warn("not ready", "part", name, "err", errs[i])
		}
	}
	s.json(w, r.Request, status, h)
	return nil
}

func (s *Server) metrics(w http.ResponseWriter, r *request) error {
	s.cfg.Metrics.Handler().ServeHTTP(w, r.Request)
	return nil
}

func (s *Server) openapi(w http.ResponseWriter, r *request) error {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Write(openapiJSON)
	return nil
}

func (s *Server) listRuns(w http.ResponseWriter, r *request) error {
	list, err := s.runs(r)
	if err != nil {
		return err
	}
	s.json(w, r.Request, http.StatusOK, list)
	return nil
}

// runs lists the runs that the request's parameters choose and that it may see.
func (s *Server) runs(r *request) (RunList, error) {
	q := r.URL.Query()
	before, err := number(q.Get("before"), "before", 0, 0)
	if err != nil {
		return RunList{}, err
	}
	limit, err := number(q.Get("limit"), "limit", 30, MaxRuns)
	if err != nil {
		return RunList{}, err
	}
	f := Filter{Repo: q.Get("repo"), Workflow: q.Get("workflow"), Branch: q.Get("branch"), Event: q.Get("event"),
		Status: tgr.Status(q.Get("status")), Delivery: tgr.DeliveryID(q.Get("delivery")), Before: tgr.RunID(before), Limit: int(limit)}
	if known(q.Get("status"), runStatuses) == "other" && f.Status != "" {
		return RunList{}, invalid("status is %q, and should be one of %s", cut(q.Get("status"), 30), strings.Join(runStatuses, ", "))
	}
	runs, err := s.cfg.Runs.Runs(r.Context(), f)
	if err != nil {
		return RunList{}, err
	}
	list := RunList{Runs: []tgr.Run{}}
	for _, run := range runs {
		if r.access.trusted || !run.Event.Repo.Private {
			list.Runs = append(list.Runs, run)
		}
	}
	if len(runs) == f.Limit {
		list.Next = runs[len(runs)-1].ID
	}
	return list, nil
}

func (s *Server) getRun(w http.ResponseWriter, r *request) error {
	d, _, err := s.runDetail(r)
	if err != nil {
		return err
	}
	s.json(w, r.Request, http.StatusOK, d)
	return nil
}

// runDetail reads the run in the path with the jobs of the attempt in the query, and returns that attempt.
func (s *Server) runDetail(r *request) (RunDetail, int, error) {
	run, err := s.run(r)
	if err != nil {
		return RunDetail{}, 0, err
	}
	attempt, err := number(r.URL.Query().Get("attempt"), "attempt", int64(run.Attempt), 0)
	if err != nil {
		return RunDetail{}, 0, err
	}
	if attempt > int64(run.Attempt) {
		return RunDetail{}, 0, tgr.Errorf("web", tgr.NotFound, "run %d has no attempt %d", run.ID, attempt)
	}
	d := RunDetail{Run: run, Attempts: []int{}}
	if d.Jobs, err = s.cfg.Runs.Jobs(r.Context(), run.ID, int(attempt)); err != nil {
		return RunDetail{}, 0, err
	}
	if d.Jobs == nil {
		d.Jobs = []tgr.Job{}
	}
	for n := range run.Attempt {
		d.Attempts = append(d.Attempts, n+1)
	}
	if s.cfg.Advice != nil {
		if n, ok := s.cfg.Advice.Notes(run.ID); ok {
			d.Notes = &n
		}
	}
	return d, int(attempt), nil
}

// ask has a model answer a question about a run. It may take as long as a model takes.
func (s *Server) ask(w http.ResponseWriter, r *request) error {
	var a Ask
	if err := decode(w, r, &a, false); err != nil {
		return err
	}
	if err := bounded(a.Question, "question", maxText); err != nil {
		return err
	}
	if strings.TrimSpace(a.Question) == "" {
		return invalid("question is empty")
	}
	run, err := s.run(r)
	if err != nil {
		return err
	}
	if s.cfg.Advice == nil {
		return tgr.Errorf("web", tgr.Unavailable, "no language model is configured")
	}
	c, err := s.cfg.Advice.Answer(r.Context(), run, a.Question)
	if err != nil {
		return err
	}
	s.json(w, r.Request, http.StatusOK, c)
	return nil
}

func (s *Server) getPlan(w http.ResponseWriter, r *request) error {
	run, err := s.run(r)
	if err != nil {
		return err
	}
	if len(run.Plan) == 0 {
		return tgr.Errorf("web", tgr.NotFound, "run %d has no plan yet", run.ID)
	}
	s.json(w, r.Request, http.StatusOK, json.RawMessage(run.Plan))
	return nil
}

func (s *Server) getJob(w http.ResponseWriter, r *request) error {
	job, _, err := s.job(r)
	if err != nil {
		return err
	}
	s.json(w, r.Request, http.StatusOK, job)
	return nil
}

// run reads the run in the path. What the request may not see looks as if it did not exist.
func (s *Server) run(r *request) (tgr.Run, error) {
	missing := tgr.Errorf("web", tgr.NotFound, "there is no run %s", cut(r.PathValue("id"), 30))
	id, err := number(r.PathValue("id"), "id", 0, 0)
	if err != nil {
		return tgr.Run{}, missing
	}
	run, err := s.cfg.Runs.Run(r.Context(), tgr.RunID(id))
	switch {
	case tgr.CodeOf(err) == tgr.NotFound, err == nil && run.Event.Repo.Private && !r.access.trusted:
		return tgr.Run{}, missing
	case err != nil:
		return tgr.Run{}, err
	}
	return run, nil
}

// job reads the job in the path and its run, with the same discretion.
func (s *Server) job(r *request) (tgr.Job, tgr.Run, error) {
	missing := tgr.Errorf("web", tgr.NotFound, "there is no job %s", cut(r.PathValue("id"), 30))
	id, err := number(r.PathValue("id"), "id", 0, 0)
	if err != nil {
		return tgr.Job{}, tgr.Run{}, missing
	}
	job, err := s.cfg.Runs.Job(r.Context(), tgr.JobID(id))
	if tgr.CodeOf(err) == tgr.NotFound {
		return tgr.Job{}, tgr.Run{}, missing
	}
	if err != nil {
		return tgr.Job{}, tgr.Run{}, err
	}
	run, err := s.cfg.Runs.Run(r.Context(), job.Run)
	if err != nil {
		return tgr.Job{}, tgr.Run{}, fmt.Errorf("run of job %d: %w", job.ID, err)
	}
	if run.Event.Repo.Private && !r.access.trusted {
		return tgr.Job{}, tgr.Run{}, missing
	}
	return job, run, nil
}

// number parses a parameter that counts from 1: at most limit, unless that is 0; absent where it is empty.
func number(value, name string, absent, limit int64) (int64, error) {
	if value == "" {
		return absent, nil
	}
	n, err := strconv.ParseUint(value, 10, 63)
	if err != nil || n == 0 || limit > 0 && int64(n) > limit {
		if limit > 0 {
			return 0, invalid("%s is %q, and should be a number from 1 to %d", name, cut(value, 30), limit)
		}
		return 0, invalid("%s is %q, and should be a number from 1 up", name, cut(value, 30))
	}
	return int64(n), nil
}

func (s *Server) cancel(w http.ResponseWriter, r *request) error {
	var c CancelRequest
	if err := decode(w, r, &c, true); err != nil {
		return err
	}
	if err := bounded(c.Reason, "reason", maxText); err != nil {
		return err
	}
	if err := bounded(c.By, "by", maxName); err != nil {
		return err
	}
	run, err := s.run(r)
	if err != nil {
		return err
	}
	if err := s.owns(r.Context(), run, c.Job); err != nil {
		return err
	}
	c.By = cmp.Or(c.By, nobody)
	if err := s.cfg.Control.Cancel(r.Context(), run.ID, c.Job, c.Reason, c.By); err != nil {
		return err
	}
	s.log.Info("cancel asked for", "run", run.ID, "job", c.Job, "by", c.By, "peer", r.RemoteAddr)
	s.json(w, r.Request, http.StatusAccepted, Accepted{Message: "will be cancelled", Runs: []tgr.RunID{run.ID}})
	return nil
}

// owns reports as an error that a job (0: none) is not one of the run.
func (s *Server) owns(ctx context.Context, run tgr.Run, id tgr.JobID) error {
	if id == 0 {
		return nil
	}
	job, err := s.cfg.Runs.Job(ctx, id)
	if tgr.CodeOf(err) == tgr.NotFound || err == nil && job.Run != run.ID {
		return tgr.Errorf("web", tgr.NotFound, "run %d has no job %d", run.ID, id)
	}
	return err
}

func (s *Server) rerun(w http.ResponseWriter, r *request) error {
	var what Rerun
	if err := decode(w, r, &what, false); err != nil {
		return err
	}
	switch {
	case what.What != RerunAll && what.What != RerunFailed && what.What != RerunJob:
		return invalid("what is %q, and should be all, failed or job", cut(what.What, 30))
	case (what.What == RerunJob) != (what.Job != 0):
		return invalid("job_id goes with what: job, and only with it")
	}
	if err := bounded(what.By, "by", maxName); err != nil {
		return err
	}
	run, err := s.run(r)
	if err != nil {
		return err
	}
	if err := s.owns(r.Context(), run, what.Job); err != nil {
		return err
	}
	what.By = cmp.Or(what.By, nobody)
	attempt, err := s.cfg.Control.Rerun(r.Context(), run.ID, what)
	if err != nil {
		return err
	}
	s.log.Info("rerun asked for", "run", run.ID, "what", what.What, "job", what.Job, "by", what.By, "peer", r.RemoteAddr)
	s.json(w, r.Request, http.StatusAccepted, Accepted{Message: "will run again", Runs: []tgr.RunID{run.ID}, Attempt: attempt})
	return nil
}

func (s *Server) dispatch(w http.ResponseWriter, r *request) error {
	var d Dispatch
	if err := decode(w, r, &d, false); err != nil {
		return err
	}
	if err := d.validate(); err != nil {
		return err
	}
	d.By = cmp.Or(d.By, nobody)
	runs, err := s.cfg.Control.Dispatch(r.Context(), d)
	if err != nil {
		return err
	}
	if runs == nil {
		runs = []tgr.RunID{}
	}
	s.log.Info("dispatched", "repo", d.Repo, "workflow", d.Workflow, "ref", d.Ref, "runs", runs, "by", d.By, "peer", r.RemoteAddr)
	s.json(w, r.Request, http.StatusAccepted, Accepted{Message: "will run", Runs: runs})
	return nil
}

func (d *Dispatch) validate() error {
	if !repoName().MatchString(d.Repo) {
		return invalid("repo is %q, and should be owner/name", cut(d.Repo, 100))
	}
	if d.Workflow == "" {
		return invalid("workflow is needed: the workflow's file")
	}
	size := 0
	for name, value := range d.Inputs {
		size += len(name) + len(value)
	}
	if len(d.Inputs) > maxInputs || size > maxInput {
		return invalid("%d inputs of %d bytes are too many: at most %d, of %d bytes together", len(d.Inputs), size, maxInputs, maxInput)
	}
	return errors.Join(bounded(d.Workflow, "workflow", maxName), bounded(d.Ref, "ref", maxName), bounded(d.By, "by", maxName))
}

func bounded(value, name string, limit int) error {
	if len(value) > limit {
		return invalid("%s has %d bytes, and may have %d", name, len(value), limit)
	}
	return nil
}

// decode reads a JSON body into v: one value, no unknown fields, at most maxBody bytes, and declared as JSON,
// which no HTML form can do. An empty body is allowed only where the caller says so.
func decode(w http.ResponseWriter, r *request, v any, empty bool) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return &refusal{http.StatusRequestEntityTooLarge, tgr.Errorf("web", tgr.Limit, "the body is larger than %d bytes", maxBody)}
	case err != nil:
		return &tgr.Error{Op: "web", Code: tgr.Invalid, Message: "the body did not arrive whole", Err: err}
	case len(body) == 0 && empty:
		return nil
	}
	if mt, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || mt != "application/json" {
		return &refusal{http.StatusUnsupportedMediaType, tgr.Errorf("web", tgr.Invalid, "the body should be application/json, and says it is %q", cut(r.Header.Get("Content-Type"), 60))}
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return invalid("the body is not what it should be: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return invalid("the body goes on after its JSON value")
	}
	return nil
}
