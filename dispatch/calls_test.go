package dispatch

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/workflow"
)

const deployWorkflow = `
on:
  workflow_call:
    inputs:
      level: {type: number, required: true}
      dry: {type: boolean, default: true}
      who: {type: string, default: '${{ github.actor }}'}
    secrets: {token: {required: true}}
    outputs: {url: {value: '${{ jobs.publish.outputs.url }}'}}
env: {CALLEE: callee}
jobs:
  build:
    runs-on: x
    steps: [{run: 'echo "level ${{ inputs.level }}, dry ${{ inputs.dry }}, who ${{ inputs.who }}, env $CALLER$CALLEE"'}]
  publish:
    needs: build
    if: inputs.level < 3
    runs-on: x
    outputs: {url: 'https://host/${{ steps.s.outputs.n }}'}
    steps:
      - {id: s, run: 'echo n=${{ inputs.level }} >> "$GITHUB_OUTPUT"'}
      - run: '[ "${{ secrets.token }}" = hunter2 ] && [ -z "${{ secrets.OTHER }}" ] && echo "secrets are right"'
      - run: 'echo "workflow ${{ github.workflow }}, file ${{ job.workflow_file_path }} of ${{ job.workflow_repository }} at ${{ job.workflow_sha }}"'
`

func withSecrets(values map[string]string) func(*Config) {
	return func(c *Config) {
		c.Vault = fixed{secrets: values}
	}
}

// The jobs of a called workflow are jobs of the run: with their own inputs, secrets and environment, and with outputs for
// what needs the caller.
func TestCalledWorkflow(t *testing.T) {
	h := open(t, files{"ci.yml": `
name: CI
on: push
env: {CALLER: caller}
jobs:
  first: {runs-on: x, outputs: {n: "2"}, steps: [{run: "true"}]}
  deploy:
    needs: first
    uses: ./.github/workflows/deploy.yml
    with: {level: "${{ fromJSON(needs.first.outputs.n) }}", dry: false}
    secrets: {token: "${{ secrets.DEPLOY }}"}
  after: {needs: deploy, runs-on: x, steps: [{run: 'echo "deployed ${{ needs.deploy.result }} to ${{ needs.deploy.outputs.url }}"'}]}
`, "deploy.yml": deployWorkflow}, nil, withSecrets(map[string]string{"DEPLOY": "hunter2", "OTHER": "x"}))
	runs, jobs := h.push(nil)
	got := ends(runs, jobs)
	slices.Sort(got)
	if diff := cmp.Diff([]string{"after success", "deploy / build success", "deploy / publish success", "first success"}, got); diff != "" {
		t.Errorf("jobs (-want +got):\n%s", diff)
	}
	for _, line := range []string{"level 2, dry false, who , env callee", "secrets are right", "deployed success to https://host/2",
		"workflow CI, file .github/workflows/deploy.yml of a/b at aaaaaaaa"} {
		if !h.log.has(line) {
			t.Errorf("the log has no line %q:\n%s", line, strings.Join(h.log.lines, "\n"))
		}
	}
	if h.log.has("hunter2") {
		t.Error("the secret that was passed is not masked")
	}
	for _, j := range jobs[runs[0].ID] {
		if j.Key == "deploy" && (j.Kind != tgr.CallJob || j.Uses != "./.github/workflows/deploy.yml" || j.Outputs["url"] != "https://host/2") {
			t.Errorf("the calling job is %+v", j)
		}
		if j.Key == "deploy/publish" && !slices.Equal(j.Needs, []string{"deploy/build"}) {
			t.Errorf("publish needs %q", j.Needs)
		}
	}
}

// A matrix over a calling job, a workflow of another repository that calls one of its own, and one job of it that fails.
func TestCalledWorkflowOfAnotherRepository(t *testing.T) {
	h := open(t, files{"ci.yml": `
on: push
jobs:
  test:
    strategy: {fail-fast: false, matrix: {os: [linux, plan9]}}
    uses: a/r/.github/workflows/test.yml@v1
    with: {os: "${{ matrix.os }}"}
    secrets: inherit
  rescue: {needs: test, if: failure(), runs-on: x, steps: [{run: 'echo "test: ${{ needs.test.result }}"'}]}
`, "a/r/.github/workflows/test.yml@v1": `
on: {workflow_call: {inputs: {os: {type: string}}}}
jobs:
  inner: {uses: ./.github/workflows/inner.yml, with: {os: "${{ inputs.os }}"}, secrets: inherit}
`, "a/r/.github/workflows/inner.yml@" + strings.Repeat("c", 40): `
on: {workflow_call: {inputs: {os: {type: string}}}}
jobs:
  try: {runs-on: x, steps: [{run: 'echo "${{ job.workflow_ref }} ${{ job.workflow_sha }} ${{ secrets.A }}"; [ "${{ inputs.os }}" = linux ]'}]}
`}, nil, withSecrets(map[string]string{"A": "inherited"}))
	runs, jobs := h.push(nil)
	got := ends(runs, jobs)
	slices.Sort(got)
	want := []string{"rescue success", "test (linux) / inner / try success", "test (plan9) / inner / try failure"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("jobs (-want +got):\n%s", diff)
	}
	for _, line := range []string{"a/r/.github/workflows/inner.yml@refs/tags/v1 " + strings.Repeat("c", 40) + " ***", "test: failure"} {
		if !h.log.has(line) {
			t.Errorf("the log has no line %q:\n%s", line, strings.Join(h.log.lines, "\n"))
		}
	}
	for _, j := range jobs[runs[0].ID] {
		if j.Key == "test" && j.Index == 1 && (j.Conclusion != tgr.Failure || j.Blame != tgr.BlameUser || j.Reason != "test (plan9) / inner: failure") {
			t.Errorf("the call that failed: %s, blame %q, %q", j.Conclusion, j.Blame, j.Reason)
		}
	}
}

// A workflow of another owner is given what is passed by name, and the token, and a job of it says so.
func TestCalledWorkflowOfAnotherOwner(t *testing.T) {
	const inner = `
on: {workflow_call: {secrets: {A: {}}}}
jobs:
  say: {runs-on: x, steps: [{run: 'echo "%s: [${{ secrets.A }}] [${{ secrets.GITHUB_TOKEN }}]"'}]}
`
	h := open(t, files{"ci.yml": `
on: push
jobs:
  inherits:
    uses: o/inherits/.github/workflows/x.yml@v1
    secrets: inherit
  given:
    uses: o/given/.github/workflows/x.yml@v1
    secrets: {A: "${{ secrets.A }}"}
  same:
    uses: A/same/.github/workflows/x.yml@v1
    secrets: inherit
`, "needs.yml": "on: push\njobs: {a: {uses: o/needs/.github/workflows/x.yml@v1, secrets: inherit}}\n",
		"o/inherits/.github/workflows/x.yml@v1": fmt.Sprintf(inner, "inherits"), "o/given/.github/workflows/x.yml@v1": fmt.Sprintf(inner, "given"),
		"A/same/.github/workflows/x.yml@v1":  fmt.Sprintf(inner, "same"),
		"o/needs/.github/workflows/x.yml@v1": "on: {workflow_call: {secrets: {A: {required: true}}}}\njobs: {a: {runs-on: x, steps: [{run: 'true'}]}}\n",
	}, nil, func(c *Config) {
		c.Vault = fixed{secrets: map[string]string{"A": "hunter2"}}
		c.Tokens = func(context.Context, TokenRequest) (Token, error) { return Token{Value: "ghs_of_the_job"}, nil }
	})
	runs, jobs := h.push(nil)
	got := ends(runs, jobs)
	slices.Sort(got)
	if diff := cmp.Diff([]string{"given / say success", "inherits / say success", "same / say success"}, got); diff != "" {
		t.Errorf("jobs (-want +got):\n%s", diff)
	}
	const warning = "ci.yml:6:14: the workflow 'o/inherits/.github/workflows/x.yml@v1' inherits no secrets, as it is of another owner"
	for _, line := range []string{"inherits: [] [***]", "given: [***] [***]", "same: [***] [***]", warning} {
		if !h.log.has(line) {
			t.Errorf("the log has no line %q:\n%s", line, strings.Join(h.log.lines, "\n"))
		}
	}
	if n := strings.Count(strings.Join(h.log.lines, "\n"), "inherits no secrets"); n != 1 {
		t.Errorf("%d jobs warn, want the one that was to inherit", n)
	}
	for _, r := range runs {
		if strings.HasSuffix(r.WorkflowFile, "needs.yml") && (r.Conclusion != tgr.StartupFailure || !strings.Contains(r.Reason, "the secret 'A' is required, but not provided while calling")) {
			t.Errorf("a required secret: %s, %q", r.Conclusion, r.Reason)
		}
	}
}

const callee = `
on: {workflow_call: {inputs: {n: {type: number}}, outputs: {o: {value: "${{ jobs.b.outputs.o }}"}}}}
concurrency: {group: "callee-${{ inputs.n }}", cancel-in-progress: true}
jobs:
  a: {runs-on: x, steps: [{run: make}]}
  b: {needs: a, runs-on: x, steps: [{run: make}]}
  c: {needs: a, if: always(), runs-on: x, steps: [{run: make}]}
`

// calling is a plan with a job that calls callee.
func calling(t *testing.T, job string) *workflow.Plan {
	t.Helper()
	w, problems := workflow.Parse("ci.yml", []byte("on: push\njobs:\n  call:\n    uses: ./.github/workflows/callee.yml\n    "+job+"\n  after: {needs: call, runs-on: x, steps: [{run: make}]}\n"))
	if workflow.Failed(problems) {
		t.Fatal(problems)
	}
	p, problems := workflow.Compile(w, workflow.Options{Trigger: workflow.Trigger{Event: "push"}, Load: func(string) (workflow.Loaded, error) {
		return workflow.Loaded{File: "callee.yml", Data: []byte(callee)}, nil
	}})
	if workflow.Failed(problems) {
		t.Fatal(problems)
	}
	return p
}

// game plays a run: a store that applies every Change at once.
type game struct {
	t    *testing.T
	p    *workflow.Plan
	run  tgr.Run
	jobs []tgr.Job
	last tgr.JobID
	now  time.Time
}

func play(t *testing.T, p *workflow.Plan) *game {
	g := &game{t: t, p: p}
	for _, row := range pendingRows(&frame{plan: p}) {
		g.add(row)
	}
	return g
}

func (g *game) add(row tgr.Job) {
	g.last++
	row.ID = g.last
	g.jobs = append(g.jobs, row)
}

// settle applies what next says until it says nothing, and returns what stands then.
func (g *game) settle() []string {
	g.t.Helper()
	for range 50 {
		c := next(g.p, g.run, g.jobs, &workflow.Scope{}, limits{now: func() time.Time { return g.now }})
		if len(c.Expand)+len(c.Begin)+len(c.Skip)+len(c.End)+len(c.Cancel) == 0 {
			return g.stand()
		}
		old := g.jobs
		g.jobs = nil
		for _, j := range old {
			if rows, ok := c.Expand[j.ID]; ok {
				for _, row := range rows {
					g.add(row)
				}
				continue
			}
			if rows, ok := c.Begin[j.ID]; ok {
				j.Status, j.Started = tgr.InProgress, time.Unix(1, 0)
				g.jobs = append(g.jobs, j)
				for _, row := range rows {
					g.add(row)
				}
				continue
			}
			if why, ok := c.Skip[j.ID]; ok {
				j.Status, j.Conclusion, j.Reason = tgr.Completed, tgr.Skipped, why
			}
			if why, ok := c.Cancel[j.ID]; ok {
				if j.Status == tgr.InProgress && j.Kind == tgr.CallJob {
					g.t.Fatalf("the call %s is cancelled, and not its jobs", j.Name)
				}
				j.Status, j.Conclusion, j.Reason = tgr.Completed, tgr.Cancelled, why
			}
			if r, ok := c.End[j.ID]; ok {
				j.Status, j.Conclusion, j.Reason, j.Outputs = tgr.Completed, r.Conclusion, r.Reason, r.Outputs
			}
			g.jobs = append(g.jobs, j)
		}
	}
	g.t.Fatalf("it does not settle: %v", g.stand())
	return nil
}

func (g *game) stand() []string {
	var out []string
	for _, j := range g.jobs {
		state := string(j.Status)
		if j.Status.Done() {
			state = string(j.Conclusion)
		}
		out = append(out, j.Name+": "+state)
	}
	slices.Sort(out)
	return out
}

// end completes the job of that name, which has to be queued or running.
func (g *game) end(name string, c tgr.Conclusion) *game {
	g.t.Helper()
	for i := range g.jobs {
		if j := &g.jobs[i]; j.Name == name && (j.Status == tgr.Queued || j.Status == tgr.InProgress) {
			j.Status, j.Conclusion = tgr.Completed, c
			return g
		}
	}
	g.t.Fatalf("%s cannot end: %v", name, g.stand())
	return g
}

func (g *game) wants(want ...string) {
	g.t.Helper()
	slices.Sort(want)
	if diff := cmp.Diff(want, g.settle()); diff != "" {
		g.t.Fatalf("jobs (-want +got):\n%s", diff)
	}
}

func TestCallEndsWithItsJobs(t *testing.T) {
	g := play(t, calling(t, "with: {n: 1}"))
	g.wants("after: pending", "call: in_progress", "call / b: pending", "call / c: pending", "call / a: queued")
	if got := g.jobs[0].Group; got != (tgr.Group{Name: "callee-1", CancelOther: true}) {
		t.Errorf("the call is in the group %+v, want that of the called workflow", got)
	}
	g.end("call / a", tgr.Failure)
	g.wants("after: pending", "call: in_progress", "call / b: skipped", "call / a: failure", "call / c: queued")
	g.end("call / c", tgr.Success)
	g.wants("after: skipped", "call: failure", "call / b: skipped", "call / a: failure", "call / c: success")
}

// Of a matrix of calls as many begin as may, and when one fails the jobs of the others are cancelled.
func TestCallsFailFastAndMaxParallel(t *testing.T) {
	g := play(t, calling(t, "strategy: {max-parallel: 2, matrix: {n: [1, 2, 3]}}\n    with: {n: \"${{ matrix.n }}\"}"))
	state := func(name string) string {
		for _, j := range g.jobs {
			if j.Name == name {
				return string(j.Status) + string(j.Conclusion)
			}
		}
		return "none"
	}
	g.settle()
	if got := []string{state("call (1)"), state("call (2)"), state("call (3)"), state("call (3) / a")}; !slices.Equal(got, []string{"in_progress", "in_progress", "queued", "none"}) {
		t.Fatalf("with max-parallel 2: %v", got)
	}
	g.end("call (1) / a", tgr.Success).settle()
	g.end("call (1) / b", tgr.Failure).end("call (1) / c", tgr.Success).settle()
	for name, want := range map[string]string{"call (1)": "completedfailure", "call (2)": "completedcancelled", "call (2) / a": "completedcancelled",
		"call (2) / b": "completedcancelled", "call (3)": "completedcancelled", "after": "completedskipped"} {
		if got := state(name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
}

// A cancelled run asks each job of a call for itself: what has always() runs.
func TestCallInACancelledRun(t *testing.T) {
	g := play(t, calling(t, "with: {n: 1}"))
	g.settle()
	g.run.CancelReason = "cancelled by ada"
	g.wants("after: pending", "call: in_progress", "call / b: cancelled", "call / a: cancelled", "call / c: queued")
	g.end("call / c", tgr.Success)
	g.wants("after: cancelled", "call: cancelled", "call / b: cancelled", "call / a: cancelled", "call / c: success")
}

func TestCallFaults(t *testing.T) {
	for _, tt := range []struct{ job, want string }{
		{"with: {n: \"${{ fromJSON('[1]') }}\"}", "ci.yml:5:15: jobs.call.with.n: a string was expected, not a sequence"},
		{"with: {n: 1}\n    concurrency: other", `ci.yml:3:3: job call is in the concurrency group "other", and the workflow callee.yml that it calls is in "callee-1": a job can be in one`},
	} {
		g := play(t, calling(t, tt.job))
		g.settle()
		if j := g.jobs[0]; j.Reason != tt.want {
			t.Errorf("%s: %s, %q, want %q", tt.job, j.Conclusion, j.Reason, tt.want)
		}
	}
	p := calling(t, "with: {n: 1}")
	p.Job("call").Call = nil
	g := play(t, p)
	g.settle()
	if j := g.jobs[0]; j.Conclusion != tgr.Failure || !strings.Contains(j.Reason, "was not available") {
		t.Errorf("a workflow that was not loaded: %s, %q", j.Conclusion, j.Reason)
	}
}

func TestTooManyJobs(t *testing.T) {
	list := strings.TrimSuffix(strings.Repeat("1, ", 256), ", ")
	p := compile(t, fmt.Sprintf("on: push\njobs:\n  a: {strategy: {matrix: {n: [%s]}}, runs-on: x, steps: [{run: make}]}\n", list))
	jobs := []tgr.Job{{ID: 1, Kind: tgr.WorkJob, Key: "a", Status: tgr.Pending}}
	for len(jobs) < maxRows-255 {
		jobs = append(jobs, tgr.Job{ID: tgr.JobID(len(jobs) + 1), Key: "x", Status: tgr.Completed})
	}
	c := next(p, tgr.Run{}, jobs, &workflow.Scope{}, limits{})
	if r := c.End[1]; !strings.Contains(r.Reason, "more than 5000 jobs") {
		t.Errorf("%d rows and 256 more: %+v", len(jobs), r)
	}
	if c := next(p, tgr.Run{}, jobs[:len(jobs)-1], &workflow.Scope{}, limits{}); len(c.Expand[1]) != 256 {
		t.Errorf("as many as may be: %+v", c.End)
	}
}

func TestOrder(t *testing.T) {
	p := calling(t, "with: {n: 1}")
	keys := []string{"after", "call/c", "call[1]/a", "call/a", "call", "call[1]/b", "gone/a"}
	slices.SortStableFunc(keys, func(a, b string) int { return slices.Compare(Order(p, a), Order(p, b)) })
	if diff := cmp.Diff([]string{"gone/a", "call", "call/a", "call/c", "call[1]/a", "call[1]/b", "after"}, keys); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// failing is a source whose other repositories cannot be read, for one reason or another.
type failing struct {
	files
	err error
}

func (f failing) Workflow(context.Context, tgr.Event, string, string, string) (workflow.Loaded, error) {
	return workflow.Loaded{}, f.err
}

// A workflow that is not there is the caller's fault; a server that does not answer is ours, and planning is tried again.
func TestLoaderBlames(t *testing.T) {
	for _, tt := range []struct {
		code tgr.Code
		ours bool
	}{{tgr.NotFound, false}, {tgr.Unauthorized, false}, {tgr.Unavailable, true}, {tgr.Internal, true}} {
		l := &loader{ctx: t.Context(), source: failing{err: tgr.Errorf("source.workflow", tt.code, "why")}}
		if _, err := l.load("o/r/.github/workflows/x.yml@v1"); err == nil || err.Error() != "why" {
			t.Errorf("%s: %v", tt.code, err)
		}
		if (l.fault != nil) != tt.ours {
			t.Errorf("%s: the fault is %v", tt.code, l.fault)
		}
	}
}
