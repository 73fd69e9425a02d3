package web

import (
	"context"
	"encoding/json"
	"io"
	"iter"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/terraphim/tgr"
)

// ask makes a request and returns the answer with its body read.
func ask(t *testing.T, method, url, body string, header ...string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		if r.Header.Set(header[i], header[i+1]); header[i] == "Host" {
			r.Host = header[i+1]
		}
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return answer, string(b)
}

func TestAPIReads(t *testing.T) {
	s := newSite(t, newMemory().fill(), nil)
	older := sampleRun()
	older.ID, older.Status, older.Conclusion = 6, tgr.Completed, tgr.Success
	s.setRun(older)
	ctx := t.Context()

	list, err := s.client.Runs(ctx, Filter{Repo: "acme/bridge", Limit: 1})
	if err != nil || len(list.Runs) != 1 || list.Runs[0].ID != 7 || list.Next != 7 {
		t.Errorf("Runs: %+v, %v", list, err)
	}
	list, err = s.client.Runs(ctx, Filter{Before: list.Next})
	if err != nil || len(list.Runs) != 1 || list.Runs[0].ID != 6 || list.Next != 0 {
		t.Errorf("Runs, next page: %+v, %v", list, err)
	}
	d, err := s.client.Run(ctx, 7, 0)
	if err != nil {
		t.Fatal(err)
	}
	want := RunDetail{Run: sampleRun(), Attempts: []int{1}, Jobs: sampleJobs()}
	want.Plan = nil // has a path of its own
	if diff := cmp.Diff(want, d); diff != "" {
		t.Errorf("Run: -want +got\n%s", diff)
	}
	job, err := s.client.Job(ctx, 70)
	if diff := cmp.Diff(sampleJobs()[0], job); err != nil || diff != "" {
		t.Errorf("Job: %v; -want +got\n%s", err, diff)
	}
	var plan struct{ Version int }
	if raw, err := s.client.Plan(ctx, 7); err != nil || json.Unmarshal(raw, &plan) != nil || plan.Version != 1 {
		t.Errorf("Plan: %s, %v", raw, err)
	}
}

func TestAPIChanges(t *testing.T) {
	s := newSite(t, newMemory().fill(), nil)
	ctx := t.Context()
	if a, err := s.client.Cancel(ctx, 7, CancelRequest{Job: 70, Reason: "wrong branch", By: "ada"}); err != nil || !cmp.Equal(a.Runs, []tgr.RunID{7}) {
		t.Errorf("Cancel: %+v, %v", a, err)
	}
	if a, err := s.client.Rerun(ctx, 7, Rerun{What: RerunJob, Job: 71, By: "ada"}); err != nil || a.Attempt != 2 {
		t.Errorf("Rerun: %+v, %v", a, err)
	}
	if a, err := s.client.Dispatch(ctx, Dispatch{Repo: "acme/bridge", Workflow: "ci.yml", Ref: "main", Inputs: map[string]string{"a": "b"}}); err != nil || !cmp.Equal(a.Runs, []tgr.RunID{9}) {
		t.Errorf("Dispatch: %+v, %v", a, err)
	}
	if answer, body := ask(t, "POST", s.url+"/api/runs/7/cancel", ""); answer.StatusCode != 202 {
		t.Errorf("cancel without a body: %d %s", answer.StatusCode, body)
	}
	want := []string{"cancel 7 70 wrong branch ada", "rerun 7 job 71 ada", "dispatch acme/bridge ci.yml main b", "cancel 7 0  someone over the API"}
	if diff := cmp.Diff(want, s.calls); diff != "" {
		t.Errorf("calls: -want +got\n%s", diff)
	}
}

func TestAPIRefuses(t *testing.T) {
	s := newSite(t, newMemory().fill(), nil)
	other := sampleJobs()[0]
	other.ID, other.Run = 80, 8
	s.setJob(other)
	many := `{"repo":"a/b","workflow":"w","ref":"r","inputs":{"x":"` + strings.Repeat("y", maxInput) + `"}}`
	for _, tc := range []struct {
		method, path, body string
		status             int
		code               tgr.Code
		message            string
	}{
		{"GET", "/api/runs/8", "", 404, tgr.NotFound, "there is no run 8"},
		{"GET", "/api/runs/-7", "", 404, tgr.NotFound, "there is no run -7"},
		{"GET", "/api/runs/99999999999999999999", "", 404, tgr.NotFound, "there is no run"},
		{"GET", "/api/runs/7?attempt=2", "", 404, tgr.NotFound, "run 7 has no attempt 2"},
		{"GET", "/api/runs/7?attempt=0", "", 400, tgr.Invalid, "attempt"},
		{"GET", "/api/jobs/1", "", 404, tgr.NotFound, "there is no job 1"},
		{"GET", "/api/runs?limit=101", "", 400, tgr.Invalid, "1 to 100"},
		{"GET", "/api/runs?before=x", "", 400, tgr.Invalid, "before"},
		{"GET", "/api/runs?status=red", "", 400, tgr.Invalid, "in_progress"},
		{"GET", "/api/runs?colour=red", "", 400, tgr.Invalid, `no parameter "colour"`},
		{"GET", "/api/runs?repo=a&repo=b", "", 400, tgr.Invalid, "2 times"},
		{"GET", "/api/jobs/70/log?from=0", "", 400, tgr.Invalid, "from"},
		{"GET", "/api/jobs/70/log?timestamps=yes", "", 400, tgr.Invalid, "0 or 1"},
		{"GET", "/api/jobs/70/log/stream?spans=2", "", 400, tgr.Invalid, "0 or 1"},
		{"GET", "/api/nothing", "", 404, tgr.NotFound, "/api/nothing"},
		{"POST", "/api/runs", "{}", 405, tgr.Invalid, "takes GET"},
		{"GET", "/api/dispatch", "", 405, tgr.Invalid, "takes POST"},
		{"PUT", "/api/runs/7/events", "", 405, tgr.Invalid, "not PUT"},
		{"DELETE", "/api/runs/7", "", 405, tgr.Invalid, "not DELETE"},
		{"POST", "/api/runs/7/cancel", `{"job_id":80}`, 404, tgr.NotFound, "run 7 has no job 80"},
		{"POST", "/api/runs/7/cancel", `{"job_id":"70"}`, 400, tgr.Invalid, "body"},
		{"POST", "/api/runs/7/cancel", `{} {}`, 400, tgr.Invalid, "goes on"},
		{"POST", "/api/runs/7/cancel", `{"reason":"` + strings.Repeat("x", 501) + `"}`, 400, tgr.Invalid, "501 bytes"},
		{"POST", "/api/runs/7/rerun", "", 415, tgr.Invalid, "application/json"},
		{"POST", "/api/runs/7/rerun", `{"what":"some"}`, 400, tgr.Invalid, "all, failed or job"},
		{"POST", "/api/runs/7/rerun", `{"what":"job"}`, 400, tgr.Invalid, "job_id"},
		{"POST", "/api/runs/7/rerun", `{"what":"all","job_id":70}`, 400, tgr.Invalid, "job_id"},
		{"POST", "/api/runs/7/rerun", `{"what":"all","force":true}`, 400, tgr.Invalid, "force"},
		{"POST", "/api/dispatch", `{"repo":"../b","workflow":"w","ref":"r"}`, 400, tgr.Invalid, "owner/name"},
		{"POST", "/api/dispatch", `{"repo":"a/b","ref":"r"}`, 400, tgr.Invalid, "workflow"},
		{"POST", "/api/dispatch", many, 400, tgr.Invalid, "too many"},
		{"POST", "/api/dispatch", `"` + strings.Repeat("x", maxBody) + `"`, 413, tgr.Limit, "larger than"},
	} {
		t.Run(tc.method+" "+cut(tc.path+" "+tc.body, 60), func(t *testing.T) {
			answer, body := ask(t, tc.method, s.url+tc.path, tc.body)
			var e ErrorBody
			if err := json.Unmarshal([]byte(body), &e); err != nil {
				t.Fatalf("%d %q: %v", answer.StatusCode, body, err)
			}
			if answer.StatusCode != tc.status || e.Error.Code != tc.code || !strings.Contains(e.Error.Message, tc.message) {
				t.Errorf("got %d %+v; want %d %s with %q", answer.StatusCode, e.Error, tc.status, tc.code, tc.message)
			}
		})
	}
	if len(s.calls) != 0 {
		t.Errorf("refused requests reached the controller: %q", s.calls)
	}
}

func TestErrorsAreDiscreet(t *testing.T) {
	s := newSite(t, newMemory().fill(), nil)
	s.fail = errDisk
	for _, path := range []string{"/", "/runs/7", "/jobs/70", "/api/runs", "/api/runs/7", "/api/jobs/70", "/api/jobs/70/log"} {
		answer, body := ask(t, "GET", s.url+path, "")
		if answer.StatusCode != 500 || strings.Contains(body, "secret") || !strings.Contains(body, "internal error") {
			t.Errorf("%s: %d %s", path, answer.StatusCode, body)
		}
	}
	s.fail = tgr.Errorf("x", tgr.Conflict, "run 7 is completed")
	if _, err := s.client.Cancel(t.Context(), 7, CancelRequest{}); tgr.CodeOf(err) != tgr.Conflict || tgr.MessageOf(err) != "run 7 is completed" {
		t.Errorf("the code did not travel: %v", err)
	}
}

func TestStatuses(t *testing.T) {
	want := map[tgr.Code]int{tgr.Invalid: 400, tgr.Unauthorized: 401, tgr.NotFound: 404, tgr.Conflict: 409, tgr.Workflow: 422,
		tgr.Limit: 429, tgr.Internal: 500, tgr.Unavailable: 503, "": 500, "new": 500}
	for code, status := range want {
		if got := Status(code); got != status {
			t.Errorf("Status(%q) = %d, want %d", code, got, status)
		}
	}
}

func TestLogAsText(t *testing.T) {
	s := newSite(t, newMemory().fill(), nil)
	for _, tc := range []struct {
		query, want string
	}{
		{"", "machine m-1\nsetting up\n\x1b[31;1mFAIL\x1b[0m bridge\n##[error]exit status 1\n"},
		{"?from=4", "##[error]exit status 1\n"},
		{"?from=5", ""},
		{"?step=1", "setting up\n"},
		{"?try=2", ""},
		{"?step=1&timestamps=1", "2026-05-04T12:00:02.0000000Z setting up\n"},
	} {
		answer, body := ask(t, "GET", s.url+"/api/jobs/70/log"+tc.query, "")
		if answer.StatusCode != 200 || body != tc.want {
			t.Errorf("%s: %d %q, want %q", tc.query, answer.StatusCode, body, tc.want)
		}
		h := answer.Header
		if h.Get("Content-Type") != "text/plain; charset=utf-8" || h.Get("Content-Disposition") != `attachment; filename="job-70.log"` ||
			h.Get("X-Content-Type-Options") != "nosniff" || !strings.Contains(h.Get("Content-Security-Policy"), "sandbox") {
			t.Errorf("%s: headers %v", tc.query, h)
		}
	}
	if _, body := ask(t, "GET", s.url+"/api/jobs/71/log", ""); body != "" {
		t.Errorf("a job without a log: %q", body)
	}
}

// brokenLogs fails after many lines.
type brokenLogs struct{ LogReader }

func (brokenLogs) Read(context.Context, tgr.JobID, int, int) iter.Seq2[tgr.LogLine, error] {
	return func(yield func(tgr.LogLine, error) bool) {
		for range 10_000 {
			if !yield(tgr.LogLine{Text: "a line that is whole"}, nil) {
				return
			}
		}
		yield(tgr.LogLine{}, errDisk)
	}
}

func TestLogThatBreaksOffIsNoEnd(t *testing.T) {
	s := newSite(t, newMemory().fill(), func(c *Config) { c.Logs = brokenLogs{c.Logs} })
	log, err := s.client.Log(t.Context(), 70, LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if n, err := io.Copy(io.Discard, log); err == nil {
		t.Errorf("half a log of %d bytes looks whole", n)
	}
}

func TestHealth(t *testing.T) {
	broken := error(nil)
	s := newSite(t, newMemory(), func(c *Config) {
		c.Ready = map[string]func(context.Context) error{
			"store": func(context.Context) error { return broken },
			"logs":  func(context.Context) error { return nil },
		}
		c.Webhook = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hooked") })
	})
	if answer, body := ask(t, "GET", s.url+"/readyz", ""); answer.StatusCode != 200 || !strings.Contains(body, `"logs": "ok"`) {
		t.Errorf("readyz: %d %s", answer.StatusCode, body)
	}
	broken = &tgr.Error{Op: "store.ping", Code: tgr.Unavailable, Message: "the disk is full", Err: errDisk}
	answer, body := ask(t, "GET", s.url+"/readyz", "")
	if answer.StatusCode != 503 || !strings.Contains(body, `"store": "the disk is full"`) || !strings.Contains(body, `"logs": "ok"`) || strings.Contains(body, "secret") {
		t.Errorf("readyz: %d %s", answer.StatusCode, body)
	}
	if answer, body := ask(t, "GET", s.url+"/healthz", ""); answer.StatusCode != 200 || !strings.Contains(body, `"version": "test"`) {
		t.Errorf("healthz: %d %s", answer.StatusCode, body)
	}
	if _, body := ask(t, "POST", s.url+"/webhook", "{}", "Host", "ci.example.com", "X-Forwarded-For", "140.82.112.1"); body != "hooked" {
		t.Errorf("webhook: %q", body)
	}
	if answer, _ := ask(t, "GET", s.url+"/webhook", ""); answer.StatusCode != 405 {
		t.Errorf("GET /webhook: %d", answer.StatusCode)
	}
}

func TestPanicIsAnAnswer(t *testing.T) {
	s := newSite(t, newMemory(), func(c *Config) {
		c.Webhook = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("secret") })
	})
	if answer, body := ask(t, "POST", s.url+"/webhook", "{}"); answer.StatusCode != 500 || strings.Contains(body, "secret") {
		t.Errorf("%d %s", answer.StatusCode, body)
	}
}

func TestNewNeedsItsParts(t *testing.T) {
	if _, err := New(Config{Runs: newMemory()}); err == nil {
		t.Error("a server without logs and control was made")
	}
}
