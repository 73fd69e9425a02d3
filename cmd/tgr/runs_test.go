package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/web"
)

// runsBook is what a server serves in these tests: one run, of jobs whose logs are closed when the jobs end.
type runsBook struct {
	mu    sync.Mutex
	run   tgr.Run
	jobs  []tgr.Job
	logs  map[tgr.JobID][]tgr.LogLine
	calls []string
}

func (b *runsBook) Runs(_ context.Context, f web.Filter) ([]tgr.Run, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if f.Repo != "" && f.Repo != b.run.Event.Repo.FullName {
		return nil, nil
	}
	return []tgr.Run{b.run}, nil
}

func (b *runsBook) Run(_ context.Context, id tgr.RunID) (tgr.Run, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if id != b.run.ID {
		return tgr.Run{}, tgr.Errorf("book", tgr.NotFound, "no")
	}
	return b.run, nil
}

func (b *runsBook) Jobs(context.Context, tgr.RunID, int) ([]tgr.Job, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.jobs), nil
}

func (b *runsBook) Job(_ context.Context, id tgr.JobID) (tgr.Job, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, j := range b.jobs {
		if j.ID == id {
			return j, nil
		}
	}
	return tgr.Job{}, tgr.Errorf("book", tgr.NotFound, "no")
}

func (b *runsBook) Read(_ context.Context, job tgr.JobID, _, from int) iter.Seq2[tgr.LogLine, error] {
	return func(yield func(tgr.LogLine, error) bool) {
		b.mu.Lock()
		lines := slices.Clone(b.logs[job])
		b.mu.Unlock()
		for _, l := range lines[min(from, len(lines)):] {
			if !yield(l, nil) {
				return
			}
		}
	}
}

// Follow ends with what there is: the server asks again until the job has ended.
func (b *runsBook) Follow(ctx context.Context, job tgr.JobID, try, from int) iter.Seq2[tgr.LogLine, error] {
	return b.Read(ctx, job, try, from)
}

func (b *runsBook) Cancel(_ context.Context, run tgr.RunID, job tgr.JobID, reason, _ string) error {
	return b.call(fmt.Sprintf("cancel %d %d %s", run, job, reason))
}

func (b *runsBook) Approve(_ context.Context, run tgr.RunID, a web.ApproveRequest) (string, error) {
	return a.Environment, b.call(fmt.Sprintf("approve %d %s %t %s", run, a.Environment, a.Reject, a.Comment))
}

func (b *runsBook) Rerun(_ context.Context, run tgr.RunID, r web.Rerun) (int, error) {
	return 2, b.call(fmt.Sprintf("rerun %d %s %d", run, r.What, r.Job))
}

func (b *runsBook) Dispatch(context.Context, web.Dispatch) ([]tgr.RunID, error) { return nil, nil }

func (b *runsBook) call(s string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls = append(b.calls, s)
	if !b.run.Status.Done() && strings.HasPrefix(s, "rerun") {
		return tgr.Errorf("book", tgr.Conflict, "run 7 has not ended")
	}
	return nil
}

// write adds a line to a job's log.
func (b *runsBook) write(job tgr.JobID, line string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.logs[job] = append(b.logs[job], tgr.LogLine{Time: runsTime(len(b.logs[job])), Step: 1, Text: line})
}

// end completes all jobs and the run.
func (b *runsBook) end(c tgr.Conclusion) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.jobs {
		b.jobs[i].Status, b.jobs[i].Conclusion, b.jobs[i].Finished = tgr.Completed, c, runsTime(62)
	}
	b.run.Status, b.run.Conclusion, b.run.Finished = tgr.Completed, c, runsTime(63)
}

func runsTime(n int) time.Time { return time.Date(2026, 5, 4, 12, 0, n, 0, time.UTC) }

func newRunsBook() *runsBook {
	one := 1
	return &runsBook{
		run: tgr.Run{ID: 7, Number: 3, Attempt: 1, WorkflowFile: ".github/workflows/ci.yml", WorkflowName: "CI", Title: "Mend \x1b]0;x\athe bridge",
			Event: tgr.Event{Name: "push", Ref: "refs/heads/main", SHA: "0123456789abcdef0123456789abcdef01234567", Actor: "ada",
				Repo: tgr.Repo{FullName: "acme/bridge"}},
			Status: tgr.InProgress, Created: runsTime(0), Started: runsTime(1)},
		jobs: []tgr.Job{
			{ID: 70, Run: 7, Attempt: 1, Key: "build", Name: "build (1)", Status: tgr.InProgress, Started: runsTime(2), Tries: 1,
				Steps:       []tgr.Step{{Number: 1, Name: "Test", Status: tgr.Completed, Conclusion: tgr.Failure, ExitCode: &one, Started: runsTime(2), Finished: runsTime(4)}},
				Annotations: []tgr.Annotation{{Level: "error", File: "a.go", Line: 3, Message: "broken"}}},
			{ID: 71, Run: 7, Attempt: 1, Key: "build", Name: "build (2)", Status: tgr.InProgress, Started: runsTime(2), Tries: 1},
			{ID: 72, Run: 7, Attempt: 1, Key: "deploy", Name: "deploy", Status: tgr.Pending},
		},
		logs: map[tgr.JobID][]tgr.LogLine{},
	}
}

func runsServer(t *testing.T, b *runsBook) string {
	t.Helper()
	s, err := web.New(web.Config{Runs: b, Logs: b, Control: b, Poll: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(s.Handler())
	t.Cleanup(server.Close)
	return server.URL
}

// runRuns runs `tgr runs` and returns what it printed and its exit status.
func runRuns(t *testing.T, args ...string) (out, notes string, status int) {
	t.Helper()
	t.Setenv("TZ", "UTC")
	cmd := newRunsCmd()
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	var o, n bytes.Buffer
	cmd.SetOut(&o)
	cmd.SetErr(&n)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(t.Context())
	if err == nil {
		return o.String(), n.String(), 0
	}
	var coded interface{ ExitCode() int }
	if !errors.As(err, &coded) {
		t.Fatalf("tgr runs %q: an error without an exit status: %v", args, err)
	}
	return o.String(), n.String() + err.Error(), coded.ExitCode()
}

func TestRunsList(t *testing.T) {
	b := newRunsBook()
	b.end(tgr.Failure)
	t.Setenv("TGR_SERVER", runsServer(t, b))
	out, _, status := runRuns(t, "list")
	want := []string{"RUN", "STATE", "WORKFLOW", "TITLE", "REPOSITORY", "REF", "EVENT", "CREATED", "TOOK",
		"7", "✗", "failure", "CI", "Mend", "the", "bridge", "acme/bridge", "main", "push"}
	if got := strings.Fields(out); status != 0 || len(got) < len(want) || !slices.Equal(got[:len(want)], want) || !strings.HasSuffix(out, "1m2s\n") {
		t.Errorf("%d\n%s", status, out)
	}
	out, _, _ = runRuns(t, "list", "--json")
	var list web.RunList
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list.Runs) != 1 {
		t.Errorf("%v: %s", err, out)
	}
	if out, _, _ := runRuns(t, "ls", "--repo", "no/one"); out != "no runs\n" {
		t.Errorf("%q", out)
	}
}

func TestRunsShow(t *testing.T) {
	b := newRunsBook()
	url := runsServer(t, b)
	out, notes, status := runRuns(t, "show", "7", "--server", url)
	want := `Mend the bridge #3 (run 7, attempt 1)
acme/bridge main at 0123456789ab, push by ada
● in progress

● in progress  build (1) (job 70)
  ✗ failure  1 Test  2.0s: exit status 1
  error: a.go:3: broken

● in progress  build (2) (job 71)

○ pending  deploy (job 72)
`
	if diff := cmp.Diff(want, out); diff != "" || status != 0 || notes != "" {
		t.Errorf("%d %q -want +got\n%s", status, notes, diff)
	}
	if _, _, status := runRuns(t, "show", "7", "--exit-status", "--server", url); status != 1 {
		t.Errorf("a run in progress: exit status %d", status)
	}
	b.end(tgr.Failure)
	if _, notes, status := runRuns(t, "show", "7", "--exit-status", "--json", "--server", url); status != 1 || notes != "run 7: ✗ failure" {
		t.Errorf("a failed run: %d %q", status, notes)
	}
	b.end(tgr.Success)
	if _, _, status := runRuns(t, "show", "7", "--exit-status", "--server", url); status != 0 {
		t.Errorf("a good run: exit status %d", status)
	}
}

func TestRunsLogs(t *testing.T) {
	b := newRunsBook()
	t.Setenv("TGR_SERVER", runsServer(t, b))
	b.write(70, "\x1b[31mone\x1b[0m\x1b]52;c;ZXZpbA==\a")
	b.write(70, "10%\r100%")
	b.write(71, "other")
	for _, tc := range []struct{ args, want string }{
		{"", "build (1) | one\nbuild (1) | 100%\nbuild (2) | other\n"},
		{"--job 70", "one\n100%\n"},
		{"-j 71 --timestamps", "2026-05-04T12:00:00.0000000Z other\n"},
		{"-j 70 --timestamps", "2026-05-04T12:00:00.0000000Z one\n2026-05-04T12:00:01.0000000Z 100%\n"},
		{"-j deploy", ""},
		{"--step 2", ""},
	} {
		if out, notes, status := runRuns(t, append([]string{"logs", "7"}, strings.Fields(tc.args)...)...); out != tc.want || status != 0 {
			t.Errorf("%s: %d %q %q", tc.args, status, out, notes)
		}
	}
}

func TestRunsLogsFollow(t *testing.T) {
	for _, tc := range []struct {
		conclusion tgr.Conclusion
		args       string
		status     int
		want       []string
		notes      string
	}{
		{tgr.Success, "", 0, []string{"build (1) | a1", "build (1) | a2", "build (2) | b1"}, "run 7: ✓ success\n"},
		{tgr.Failure, "", 1, []string{"build (1) | a1", "build (1) | a2", "build (2) | b1"}, "run 7: ✗ failure"},
		{tgr.Cancelled, "--job 70", 1, []string{"a1", "a2"}, "job 70: ⊘ cancelled"},
		{tgr.Success, "-j 71 --timestamps", 0, []string{"2026-05-04T12:00:00.0000000Z b1"}, "job 71: ✓ success\n"},
	} {
		b := newRunsBook()
		t.Setenv("TGR_SERVER", runsServer(t, b))
		b.write(70, "a1")
		var writer sync.WaitGroup
		writer.Go(func() {
			b.write(71, "b1")
			b.write(70, "a2")
			b.end(tc.conclusion)
		})
		out, notes, status := runRuns(t, append([]string{"logs", "7", "-f"}, strings.Fields(tc.args)...)...)
		writer.Wait()
		got := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
		slices.Sort(got)
		if diff := cmp.Diff(tc.want, got); diff != "" || status != tc.status || notes != tc.notes {
			t.Errorf("%+v: %d %q\n%s", tc, status, notes, diff)
		}
	}
}

func TestRunsLogsFollowJSON(t *testing.T) {
	b := newRunsBook()
	b.write(70, "a1")
	b.end(tgr.Success)
	out, _, status := runRuns(t, "logs", "7", "-f", "--job", "70", "--json", "--server", runsServer(t, b))
	var l struct {
		Job        int64 `json:"job_id"`
		Line       int
		Name, Text string
	}
	if err := json.Unmarshal([]byte(out), &l); err != nil || status != 0 || l.Job != 70 || l.Line != 1 || l.Text != "a1" {
		t.Errorf("%v %d %s", err, status, out)
	}
}

func TestRunsCancelAndRerun(t *testing.T) {
	b := newRunsBook()
	t.Setenv("TGR_SERVER", runsServer(t, b))
	if out, _, status := runRuns(t, "cancel", "7", "--reason", "wrong branch"); status != 0 || out != "run 7 will be cancelled\n" {
		t.Errorf("%d %q", status, out)
	}
	runRuns(t, "cancel", "7", "--job", "build (2)")
	if _, notes, status := runRuns(t, "rerun", "7"); status != 2 || notes != "run 7 has not ended" {
		t.Errorf("%d %q", status, notes)
	}
	b.end(tgr.Failure)
	if out, _, status := runRuns(t, "rerun", "7", "--failed"); status != 0 || out != "run 7 will run again, attempt 2\n" {
		t.Errorf("%d %q", status, out)
	}
	if out, _, status := runRuns(t, "rerun", "7", "--job", "deploy", "--json"); status != 0 || !strings.Contains(out, `"run_attempt": 2`) {
		t.Errorf("%d %q", status, out)
	}
	want := []string{"cancel 7 0 wrong branch", "cancel 7 71 ", "rerun 7 all 0", "rerun 7 failed 0", "rerun 7 job 72"}
	if diff := cmp.Diff(want, b.calls); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestRunsErrors(t *testing.T) {
	b := newRunsBook()
	t.Setenv("TGR_SERVER", runsServer(t, b))
	for _, tc := range []struct {
		args   []string
		status int
		notes  string
	}{
		{[]string{"show"}, 2, "one argument"},
		{[]string{"show", "1", "2"}, 2, "one argument"},
		{[]string{"show", "x"}, 2, `the run is "x"`},
		{[]string{"show", "-1"}, 2, "unknown shorthand"},
		{[]string{"show", "0"}, 2, `the run is "0"`},
		{[]string{"show", "8"}, 2, "there is no run 8"},
		{[]string{"show", "7", "--attempt", "2"}, 2, "has no attempt 2"},
		{[]string{"show", "7", "--colour"}, 2, "unknown flag"},
		{[]string{"list", "7"}, 2, "no arguments"},
		{[]string{"list", "--limit", "1000"}, 2, "1 to 100"},
		{[]string{"list", "--status", "red"}, 2, "in_progress"},
		{[]string{"logs", "7", "--json"}, 2, "--follow"},
		{[]string{"logs", "7", "--job", "build"}, 2, "2 jobs"},
		{[]string{"logs", "7", "--job", "none"}, 2, "it has build (1) (job 70)"},
		{[]string{"logs", "8", "-f"}, 2, "there is no run 8"},
		{[]string{"rerun", "7", "--failed", "--job", "deploy"}, 2, "exclude each other"},
		{[]string{"list", "--server", "127.0.0.1:3000"}, 2, "should be a URL"},
		{[]string{"list", "--server", "http://127.0.0.1:1"}, 3, "cannot reach the server at http://127.0.0.1:1"},
		{[]string{"cancel", "7", "--server", "http://127.0.0.1:1"}, 3, "cannot reach"},
	} {
		if _, notes, status := runRuns(t, tc.args...); status != tc.status || !strings.Contains(notes, tc.notes) {
			t.Errorf("tgr runs %q: %d %q, want %d with %q", tc.args, status, notes, tc.status, tc.notes)
		}
	}
	s, err := web.New(web.Config{Runs: b, Logs: b, Control: b, Token: "s3cret"})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(s.Handler())
	defer server.Close()
	if _, notes, status := runRuns(t, "list", "--server", server.URL); status != 2 || !strings.Contains(notes, "token") {
		t.Errorf("without the token: %d %q", status, notes)
	}
	t.Setenv("TGR_TOKEN", "s3cret")
	if _, notes, status := runRuns(t, "list", "--server", server.URL); status != 0 {
		t.Errorf("with the token: %d %q", status, notes)
	}
}

// A workflow is started by hand for a branch or a tag, with its inputs and the defaults of those that are not given.
func TestRunsStart(t *testing.T) {
	s := openSite(t)
	repo := s.repo("acme/manual", map[string]string{workflowDir + "/hand.yml": `
on:
  workflow_dispatch: {inputs: {level: {default: low}, dry: {type: boolean, default: true}}}
jobs:
  show:
    runs-on: linux
    steps:
      - run: echo "${{ github.ref }} by ${{ github.event_name }}, ${{ inputs.level }}, the event's ${{ github.event.inputs.level }} ${{ github.event.inputs.dry }}"
`})
	if err := repo.Branch("topic", repo.SHA("main")); err != nil {
		t.Fatal(err)
	}
	if out, status := s.tries(newRunsCmd(), "", "start", "hand.yml", "-R", "acme/manual"); status != 2 || !strings.Contains(out, "no webhook of repository acme/manual has arrived yet") {
		t.Errorf("before the repository is known: %d, %s", status, out)
	}
	s.completed(s.push(repo, map[string]string{"a": "b"}))
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"hand.yml"}, "refs/heads/main by workflow_dispatch, low, the event's low true"},
		{[]string{workflowDir + "/hand.yml", "--ref", "topic", "--input", "level=high", "--input", "dry=false"}, "refs/heads/topic by workflow_dispatch, high, the event's high false"},
	} {
		out := s.tgr(newRunsCmd(), "", append([]string{"start", "-R", "acme/manual"}, tt.args...)...)
		var id tgr.RunID
		if _, err := fmt.Sscanf(out, "run %d will run", &id); err != nil {
			t.Fatalf("%v: %s", tt.args, out)
		}
		var d web.RunDetail
		s.await("the run", func() bool {
			var err error
			d, err = s.client.Run(t.Context(), id, 0)
			return err == nil && d.Status.Done()
		})
		if log := s.logOf(d); d.Conclusion != tgr.Success || !strings.Contains(log, tt.want) {
			t.Errorf("%v: %s, no %q in\n%s", tt.args, d.Conclusion, tt.want, log)
		}
	}
	for _, args := range [][]string{{"start", "hand.yml"}, {"start", "-R", "acme/manual"}, {"start", "hand.yml", "-R", "acme/manual", "--input", "x"}} {
		if out, status := s.tries(newRunsCmd(), "", args...); status != 2 {
			t.Errorf("%v: %d, %s", args, status, out)
		}
	}
}
