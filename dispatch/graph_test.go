package dispatch

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/runner"
	"github.com/terraphim/tgr/workflow"
)

// compile is the plan of a workflow that a push to main starts.
func compile(t *testing.T, src string) *workflow.Plan {
	t.Helper()
	w, problems := workflow.Parse("ci.yml", []byte(src))
	if workflow.Failed(problems) {
		t.Fatalf("parse: %v", problems)
	}
	p, problems := workflow.Compile(w, workflow.Options{Trigger: workflow.Trigger{Event: "push", Ref: "refs/heads/main"}})
	if workflow.Failed(problems) {
		t.Fatalf("compile: %v", problems)
	}
	return p
}

// state is a job's row in short: "build" is pending, "build=success" completed, "build@1:2=failure" the second of
// two instances, "build@0:2" that instance queued, "build~" in progress.
func rows(t *testing.T, p *workflow.Plan, states ...string) []tgr.Job {
	t.Helper()
	var jobs []tgr.Job
	for i, s := range states {
		j := tgr.Job{ID: tgr.JobID(i + 1), Kind: tgr.WorkJob, Status: tgr.Pending}
		s, conclusion, done := strings.Cut(s, "=")
		s, running := strings.CutSuffix(s, "~")
		key, part, instance := strings.Cut(s, "@")
		j.Key, j.Name = key, key
		if instance {
			if _, err := fmt.Sscanf(part, "%d:%d", &j.Index, &j.Total); err != nil {
				t.Fatal(err)
			}
			j.Name = fmt.Sprintf("%s %d", key, j.Index)
			j.Status = tgr.Queued
			j.Instance = fmt.Appendf(nil, `{"total":%d,"fail_fast":true}`, j.Total)
		}
		switch {
		case done:
			j.Status, j.Conclusion = tgr.Completed, tgr.Conclusion(conclusion)
		case running:
			j.Status = tgr.InProgress
		}
		if def := p.Job(key); def != nil {
			j.Needs = def.Needs
			j.ContinueOnError = def.ContinueOnError == "true"
		}
		jobs = append(jobs, j)
	}
	return jobs
}

// brief is a Change in lines: what becomes of which job.
func brief(c Change, jobs []tgr.Job) []string {
	var out []string
	for _, j := range jobs {
		for _, row := range c.Expand[j.ID] {
			out = append(out, "queue "+row.Name)
		}
		if reason, ok := c.Skip[j.ID]; ok {
			out = append(out, "skip "+j.Name+": "+reason)
		}
		if r, ok := c.End[j.ID]; ok {
			verb := "fail"
			if r.Conclusion == tgr.Cancelled {
				verb = "end"
			}
			out = append(out, fmt.Sprintf("%s %s (%s): %s", verb, j.Name, r.Blame, r.Reason))
		}
		if reason, ok := c.Cancel[j.ID]; ok {
			out = append(out, "cancel "+j.Name+": "+reason)
		}
	}
	return out
}

func TestNext(t *testing.T) {
	const chain = `
on: push
jobs:
  build: {runs-on: ubuntu-latest, steps: [{run: make}]}
  test: {needs: build, runs-on: ubuntu-latest, steps: [{run: make test}]}
  report: {needs: [build, test], if: always(), runs-on: ubuntu-latest, steps: [{run: make report}]}
  rescue: {needs: test, if: failure(), runs-on: ubuntu-latest, steps: [{run: make rescue}]}
`
	const matrix = `
on: push
jobs:
  test:
    strategy: {matrix: {go: ["1.25", "1.26"], os: [linux, plan9], exclude: [{go: "1.25", os: plan9}]}}
    runs-on: ubuntu-latest
    steps: [{run: make}]
  after: {needs: test, runs-on: ubuntu-latest, steps: [{run: make}]}
`
	const picky = `
on: push
jobs:
  a: {runs-on: x, steps: [{run: make}]}
  never: {if: false, runs-on: x, steps: [{run: make}]}
  asked: {needs: a, if: "needs.a.outputs.x == 'y'", runs-on: x, steps: [{run: make}]}
  failed: {needs: a, if: failure(), runs-on: x, steps: [{run: make}]}
`
	const shaky = `
on: push
jobs:
  shaky: {continue-on-error: true, runs-on: ubuntu-latest, steps: [{run: make}]}
  after: {needs: shaky, runs-on: ubuntu-latest, steps: [{run: make}]}
`
	tests := []struct {
		name, workflow string
		rows           []string
		cancel         string
		want           []string
	}{
		{"what needs nothing starts", chain, []string{"build", "test", "report", "rescue"}, "", []string{"queue build"}},
		{"nothing new while it runs", chain, []string{"build@0:1~", "test", "report", "rescue"}, "", nil},
		{"a success frees what needs it", chain, []string{"build@0:1=success", "test", "report", "rescue"}, "", []string{"queue test"}},
		{"a failure skips", chain, []string{"build@0:1=failure", "test", "report", "rescue"}, "",
			[]string{"skip test: if: success() is false: build ended as failure"}},
		{"a condition is told as it is written", picky, []string{"a@0:1=success", "never", "asked", "failed"}, "",
			[]string{"skip never: if: false is false", "skip asked: if: needs.a.outputs.x == 'y' is false", "skip failed: if: failure() is false"}},
		{"a condition of a job whose need failed", picky, []string{"a@0:1=failure", "never=skipped", "asked", "failed@0:1=success"}, "",
			[]string{"skip asked: if: success() is false: a ended as failure"}},
		{"always and failure run after a failure", chain, []string{"build@0:1=success", "test@0:1=failure", "report", "rescue"}, "",
			[]string{"queue report", "queue rescue"}},
		{"failure() looks at all ancestors", chain, []string{"build@0:1=failure", "test=skipped", "report@0:1=success", "rescue"}, "",
			[]string{"queue rescue"}},
		{"a timeout is a failure", chain, []string{"build@0:1=timed_out", "test", "report", "rescue"}, "",
			[]string{"skip test: if: success() is false: build ended as failure"}},
		{"matrix", matrix, []string{"test", "after"}, "",
			[]string{"queue test (1.25, linux)", "queue test (1.26, linux)", "queue test (1.26, plan9)"}},
		{"a matrix is done when all of it is", matrix, []string{"test@0:3=success", "test@1:3~", "test@2:3=success", "after"}, "", nil},
		{"fail-fast cancels the others", matrix, []string{"test@0:3=failure", "test@1:3~", "test@2:3", "after"}, "",
			[]string{"cancel test 1: fail-fast: test 0 failed", "cancel test 2: fail-fast: test 0 failed"}},
		{"what was cancelled does not fail fast", matrix, []string{"test@0:3=cancelled", "test@1:3~", "test@2:3", "after"}, "", nil},
		{"continue-on-error frees what needs it", shaky, []string{"shaky@0:1=failure", "after"}, "", []string{"queue after"}},
		{"a cancelled run", chain, []string{"build@0:1~", "test", "report", "rescue"}, "by ada",
			[]string{"cancel build 0: by ada"}},
		{"always() outlives a cancellation", chain, []string{"build@0:1=cancelled", "test", "report", "rescue"}, "by ada",
			[]string{"cancel test: by ada"}},
		{"and runs once all is cancelled", chain, []string{"build@0:1=cancelled", "test=cancelled", "report", "rescue"}, "by ada",
			[]string{"queue report", "cancel rescue: by ada"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := compile(t, tt.workflow)
			jobs := rows(t, p, tt.rows...)
			c := next(p, tgr.Run{CancelReason: tt.cancel}, jobs, &workflow.Scope{}, limits{})
			if diff := cmp.Diff(tt.want, brief(c, jobs)); diff != "" {
				t.Errorf("next (-want +got):\n%s", diff)
			}
		})
	}
}

// A change has to lead somewhere: whatever the outcome of each job, in whatever order they end, every job of a run
// is completed in the end, and none is decided on twice.
func TestNextConverges(t *testing.T) {
	p := compile(t, `
on: push
jobs:
  a: {runs-on: x, steps: [{run: "true"}]}
  b: {needs: a, runs-on: x, steps: [{run: "true"}]}
  c: {needs: a, if: failure(), runs-on: x, steps: [{run: "true"}]}
  d: {needs: [b, c], if: "!cancelled()", strategy: {matrix: {n: [1, 2]}}, runs-on: x, steps: [{run: "true"}]}
  e: {needs: d, if: always(), runs-on: x, steps: [{run: "true"}]}
`)
	outcomes := []tgr.Conclusion{tgr.Success, tgr.Failure, tgr.Cancelled, tgr.TimedOut}
	for seed := range 256 {
		jobs := rows(t, p, "a", "b", "c", "d", "e")
		for round := range 20 {
			c := next(p, tgr.Run{}, jobs, &workflow.Scope{}, limits{})
			jobs = applied(t, jobs, c)
			open := slices.IndexFunc(jobs, func(j tgr.Job) bool { return j.Status == tgr.Queued })
			if open >= 0 {
				jobs[open].Status, jobs[open].Conclusion = tgr.Completed, outcomes[(seed>>(2*(round%4)))&3]
			} else if !slices.ContainsFunc(jobs, func(j tgr.Job) bool { return !j.Status.Done() }) {
				break
			}
		}
		for _, j := range jobs {
			if !j.Status.Done() {
				t.Fatalf("seed %d: %s is still %s", seed, j.Name, j.Status)
			}
		}
	}
}

// applied is what a store does with a Change.
func applied(t *testing.T, jobs []tgr.Job, c Change) []tgr.Job {
	t.Helper()
	var out []tgr.Job
	last := jobs[len(jobs)-1].ID
	for _, j := range jobs {
		last = max(last, j.ID)
	}
	for _, j := range jobs {
		if rows, ok := c.Expand[j.ID]; ok {
			for _, row := range rows {
				last++
				row.ID = last
				out = append(out, row)
			}
			continue
		}
		for _, done := range []struct {
			ids        map[tgr.JobID]string
			conclusion tgr.Conclusion
		}{{c.Skip, tgr.Skipped}, {c.Cancel, tgr.Cancelled}} {
			if _, ok := done.ids[j.ID]; ok {
				if j.Status.Done() {
					t.Fatalf("%s is completed and was decided on again", j.Name)
				}
				j.Status, j.Conclusion = tgr.Completed, done.conclusion
			}
		}
		if r, ok := c.End[j.ID]; ok {
			j.Status, j.Conclusion = tgr.Completed, r.Conclusion
		}
		out = append(out, j)
	}
	return out
}

func TestNeedOf(t *testing.T) {
	done := func(c tgr.Conclusion, outputs map[string]string) tgr.Job {
		return tgr.Job{Status: tgr.Completed, Conclusion: c, Outputs: outputs}
	}
	allowed := done(tgr.Failure, nil)
	allowed.ContinueOnError = true
	tests := []struct {
		name string
		rows []tgr.Job
		want workflow.Need
	}{
		{"one", []tgr.Job{done(tgr.Success, map[string]string{"v": "1"})}, workflow.Need{Result: "success", Outputs: map[string]string{"v": "1"}}},
		{"worst counts", []tgr.Job{done(tgr.Success, nil), done(tgr.Cancelled, nil), done(tgr.Failure, nil)}, workflow.Need{Result: "failure"}},
		{"cancelled", []tgr.Job{done(tgr.Success, nil), done(tgr.Cancelled, nil)}, workflow.Need{Result: "cancelled"}},
		{"all skipped", []tgr.Job{done(tgr.Skipped, nil)}, workflow.Need{Result: "skipped"}},
		{"may fail", []tgr.Job{allowed}, workflow.Need{Result: "success"}},
		{"an absent conclusion is a failure", []tgr.Job{done("", nil)}, workflow.Need{Result: "failure"}},
		{"an empty output does not hide another", []tgr.Job{done(tgr.Success, map[string]string{"v": "1"}), done(tgr.Success, map[string]string{"v": ""})},
			workflow.Need{Result: "success", Outputs: map[string]string{"v": "1"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := needOf(tt.rows)
			if got.Result != tt.want.Result || !maps.Equal(got.Outputs, tt.want.Outputs) {
				t.Errorf("needOf = %+v, want %+v", got, tt.want)
			}
		})
	}
}

// A job that waits for its concurrency group was decided on: it is not expanded again, and ends with its run.
func TestNextLeavesWhoWaitsForAGroup(t *testing.T) {
	p := compile(t, `
on: push
jobs:
  deploy: {concurrency: {group: "prod-${{ github.ref_name }}", queue: max}, runs-on: x, steps: [{run: "true"}]}
`)
	scope := &workflow.Scope{GitHub: map[string]any{"ref_name": "main"}}
	jobs := rows(t, p, "deploy")
	c := next(p, tgr.Run{}, jobs, scope, limits{})
	want := tgr.Group{Name: "prod-main", QueueMax: true}
	if got := c.Expand[1]; len(got) != 1 || got[0].Group != want {
		t.Fatalf("expanded to %+v, want one job in the group %+v", got, want)
	}
	waiting := c.Expand[1][0]
	waiting.ID, waiting.Status = 2, tgr.Pending
	if got := brief(next(p, tgr.Run{}, []tgr.Job{waiting}, scope, limits{}), []tgr.Job{waiting}); got != nil {
		t.Errorf("while it waits: %v", got)
	}
	got := brief(next(p, tgr.Run{CancelReason: "by ada"}, []tgr.Job{waiting}, scope, limits{}), []tgr.Job{waiting})
	if diff := cmp.Diff([]string{"cancel deploy: by ada"}, got); diff != "" {
		t.Errorf("when its run is cancelled (-want +got):\n%s", diff)
	}
}

func TestDistinguish(t *testing.T) {
	runs := []PlannedRun{{WorkflowName: "CI", WorkflowFile: ".github/workflows/a.yml"}, {WorkflowName: "Docs", WorkflowFile: ".github/workflows/d.yml"},
		{WorkflowName: "CI", WorkflowFile: ".github/workflows/b.yml"}}
	distinguish(runs)
	var got []string
	for _, r := range runs {
		got = append(got, r.WorkflowName)
	}
	if diff := cmp.Diff([]string{"CI [a.yml]", "Docs", "CI [b.yml]"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestSummaryIsBounded(t *testing.T) {
	if got := summary([]runner.Summary{{Step: 1, Markdown: "one"}, {Step: 2, Markdown: "two"}}); got != "one\n\ntwo" {
		t.Errorf("summary %q", got)
	}
	got := summary([]runner.Summary{{Step: 1, Markdown: strings.Repeat("ü", maxSummary)}})
	if len(got) > maxSummary || !utf8.ValidString(got) || !strings.HasSuffix(got, "cut off.)") {
		t.Errorf("%d bytes, valid %v, ends with %q", len(got), utf8.ValidString(got), got[len(got)-20:])
	}
}

// Each instance of a matrix keeps the outputs that it needs: large ones do not fill the database.
func TestLargeNeeds(t *testing.T) {
	p := compile(t, `
on: push
jobs:
  a: {runs-on: x, steps: [{run: make}]}
  b: {needs: a, strategy: {matrix: {n: [1, 2, 3, 4, 5, 6, 7, 8, 9], o: [1, 2, 3, 4, 5, 6, 7, 8]}}, runs-on: x, steps: [{run: make}]}
`)
	for size, want := range map[int]int{100_000: 72, 1_000_000: 0} {
		jobs := rows(t, p, "a@0:1=success", "b")
		jobs[0].Outputs = map[string]string{"o": strings.Repeat("x", size)}
		c := next(p, tgr.Run{}, jobs, &workflow.Scope{}, limits{})
		if n := len(c.Expand[2]); n != want {
			t.Errorf("outputs of %d bytes: %d instances, want %d", size, n, want)
		}
		if r := c.End[2]; want == 0 && (r.Blame != tgr.BlameWorkflow || !strings.Contains(r.Reason, "ci.yml:5:3: the run's jobs would keep more than 67108864 bytes")) {
			t.Errorf("outputs of %d bytes: %+v", size, r)
		}
	}
}
