package dispatch

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
)

// What a workflow may say of its jobs, end to end: each job prints what it sees, or ends as it should.
func TestJobSemantics(t *testing.T) {
	h := open(t, files{"ci.yml": `
on: push
jobs:
  matrix:
    strategy: {fail-fast: false, max-parallel: 2, matrix: {n: [a, b, c]}}
    runs-on: x
    outputs: {last: "${{ matrix.n }}"}
    steps:
      - run: 'echo "${{ matrix.n }} is ${{ strategy.job-index }} of ${{ strategy.job-total }}, ${{ strategy.max-parallel }} at once, fail-fast ${{ strategy.fail-fast }}"'
      - {if: matrix.n == 'b', run: exit 1}
  shaky: {continue-on-error: true, runs-on: x, outputs: {o: "${{ steps.s.outputs.o }}"}, steps: [{id: s, run: 'echo o=kept >> "$GITHUB_OUTPUT"'}, {run: exit 1}]}
  slow: {timeout-minutes: 0.01, runs-on: x, steps: [{run: sleep 60}, {if: always(), run: echo "slow cleans up"}]}
  skipped: {if: false, runs-on: x, steps: [{run: "true"}]}
  downstream: {needs: skipped, runs-on: x, steps: [{run: "true"}]}
  further: {needs: downstream, runs-on: x, steps: [{run: "true"}]}
  rescued: {needs: [matrix, further], if: "failure('matrix') && !success('further')", runs-on: x, steps: [{run: "echo rescued"}]}
  report:
    needs: [matrix, shaky, slow, skipped, further]
    if: always()
    runs-on: x
    steps:
      - run: 'echo "matrix ${{ needs.matrix.result }}, shaky ${{ needs.shaky.result }} with ${{ needs.shaky.outputs.o }}, slow ${{ needs.slow.result }}, further ${{ needs.further.result }}"'
`}, nil, nil)
	runs, jobs := h.push(nil)
	got := ends(runs, jobs)
	slices.Sort(got)
	want := []string{"downstream skipped", "further skipped", "matrix (a) success", "matrix (b) failure", "matrix (c) success",
		"report success", "rescued success", "shaky failure", "skipped skipped", "slow timed_out"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("jobs (-want +got):\n%s", diff)
	}
	for _, line := range []string{"a is 0 of 3, 2 at once, fail-fast false", "c is 2 of 3, 2 at once, fail-fast false",
		"matrix failure, shaky success with kept, slow failure, further skipped", "rescued", "slow cleans up"} {
		if !h.log.has(line) {
			t.Errorf("the log has no line %q", line)
		}
	}
	if runs[0].Conclusion != tgr.Failure {
		t.Errorf("the run: %s", runs[0].Conclusion)
	}
}

// Why a job was cancelled is kept, of those that ran and of those that did not, and what is to run always does.
func TestCancelReasonIsKept(t *testing.T) {
	h := open(t, files{"ci.yml": `
on: push
jobs:
  long: {runs-on: x, steps: [{run: 'echo begun; sleep 100'}, {if: cancelled(), run: echo "long was cancelled"}]}
  next: {needs: long, runs-on: x, steps: [{run: "true"}]}
  always: {needs: long, if: always(), runs-on: x, steps: [{run: 'echo "long: ${{ needs.long.result }}"'}]}
`}, nil, nil)
	h.push(func([]tgr.Run, map[tgr.RunID][]tgr.Job) bool { return h.log.has("begun") })
	h.memory.Cancel("cancelled by ada: wrong branch")
	if err := h.d.Settle(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	runs, jobs := h.await(nil)
	for _, j := range jobs[runs[0].ID] {
		switch j.Key {
		case "long", "next":
			if j.Conclusion != tgr.Cancelled || !strings.Contains(j.Reason, "cancelled by ada: wrong branch") {
				t.Errorf("%s: %s, %q", j.Key, j.Conclusion, j.Reason)
			}
		case "always":
			if j.Conclusion != tgr.Success {
				t.Errorf("always: %s, %q", j.Conclusion, j.Reason)
			}
		}
	}
	if !h.log.has("long was cancelled") || !h.log.has("long: cancelled") || runs[0].Conclusion != tgr.Cancelled {
		t.Errorf("run %s:\n%s", runs[0].Conclusion, strings.Join(h.log.lines, "\n"))
	}
}

// One failure of a matrix ends its siblings, with the reason; one that may fail does not.
func TestFailFastEndToEnd(t *testing.T) {
	h := open(t, files{"ci.yml": `
on: push
jobs:
  fast:
    strategy: {matrix: {n: [bad, slow, slower]}}
    runs-on: x
    steps: [{run: 'if [ ${{ matrix.n }} = bad ]; then exit 1; fi; sleep 100'}]
  allowed:
    continue-on-error: ${{ matrix.n == 'bad' }}
    strategy: {matrix: {n: [bad, fine]}}
    runs-on: x
    steps: [{run: 'test ${{ matrix.n }} = fine'}]
`}, nil, func(c *Config) { c.Workers = 5 })
	runs, jobs := h.push(nil)
	got := ends(runs, jobs)
	slices.Sort(got)
	want := []string{"allowed (bad) failure", "allowed (fine) success", "fast (bad) failure", "fast (slow) cancelled", "fast (slower) cancelled"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("jobs (-want +got):\n%s", diff)
	}
	for _, j := range jobs[runs[0].ID] {
		if j.Conclusion == tgr.Cancelled && !strings.Contains(j.Reason, "fail-fast: fast (bad) failed") {
			t.Errorf("%s: %q", j.Name, j.Reason)
		}
	}
}

// Of the jobs of one concurrency group one runs at a time; who comes waits in the place of who waits, or behind.
func TestJobConcurrency(t *testing.T) {
	inside := `steps: [{run: 'mkdir "$LOCK" && sleep 0.2 && rmdir "$LOCK"'}]`
	h := open(t, files{"ci.yml": strings.ReplaceAll(`
on: push
env: {LOCK: `+t.TempDir()+`/lock}
jobs:
  queued:
    strategy: {fail-fast: false, matrix: {n: [a, b, c]}}
    concurrency: {group: Deploy, queue: max}
    runs-on: x
    INSIDE
  other: {concurrency: {group: deploy, queue: max}, runs-on: x, INSIDE}
  after: {needs: queued, runs-on: x, steps: [{run: "true"}]}
  replaced:
    strategy: {fail-fast: false, matrix: {n: [a, b, c]}}
    concurrency: second
    runs-on: x
    steps: [{run: sleep 0.3}]
  gone:
    strategy: {fail-fast: false, matrix: {n: [a, b]}}
    concurrency: {group: third, cancel-in-progress: true}
    runs-on: x
    steps: [{run: 'test ${{ matrix.n }} = b || sleep 60'}]
`, "INSIDE", inside)}, nil, nil)
	runs, jobs := h.push(nil)
	got := ends(runs, jobs)
	slices.Sort(got)
	want := []string{"after success", "gone (a) cancelled", "gone (b) success", "other success", "queued (a) success", "queued (b) success", "queued (c) success",
		"replaced (a) success", "replaced (b) cancelled", "replaced (c) success"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("jobs (-want +got):\n%s", diff)
	}
	for _, j := range jobs[runs[0].ID] {
		want := map[string]string{
			"replaced (b)": `replaced (c) came to the concurrency group "second" later, and waits in its place`,
			"gone (a)":     `superseded by gone (b) in the concurrency group "third"`,
		}[j.Name]
		if !strings.Contains(j.Reason, want) {
			t.Errorf("%s: the reason is %q, want %q", j.Name, j.Reason, want)
		}
	}
}

// A call and what it calls are not in one group: the called job would wait for ever.
func TestJobConcurrencyOfACall(t *testing.T) {
	h := open(t, files{"ci.yml": `
on: push
jobs:
  call: {uses: ./.github/workflows/called.yml, concurrency: one}
  same: {concurrency: one, needs: call, if: always(), runs-on: x, steps: [{run: "true"}]}
`, "called.yml": `
on: workflow_call
jobs:
  stuck: {concurrency: one, runs-on: x, steps: [{run: "true"}]}
  free: {runs-on: x, steps: [{run: "true"}]}
`}, nil, nil)
	runs, jobs := h.push(nil)
	got := ends(runs, jobs)
	slices.Sort(got)
	want := []string{"call / free success", "call / stuck cancelled", "same success"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("jobs (-want +got):\n%s", diff)
	}
}
