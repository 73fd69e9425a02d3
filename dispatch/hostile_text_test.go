package dispatch

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
)

// hears has an event accepted, and returns the names of the jobs that it came to, with the log of them all.
func (h *hall) hears(ev tgr.Event) (names []string, log string, runs []tgr.Run) {
	h.t.Helper()
	ev.SHA, ev.Repo = strings.Repeat("a", 40), tgr.Repo{FullName: "a/b"}
	h.memory.Accept(ev)
	h.d.Wake()
	runs, jobs := h.await(nil)
	names = ends(runs, jobs)
	slices.Sort(names)
	h.log.mu.Lock()
	defer h.log.mu.Unlock()
	return names, strings.Join(h.log.lines, "\n"), runs
}

// What looks like an expression in an output, a combination of a matrix or an input is text, on its way from job to job too.
func TestValuesAreNotEvaluated(t *testing.T) {
	h := open(t, files{"ci.yml": `
on: pull_request
run-name: ${{ github.head_ref }}
jobs:
  a:
    runs-on: x
    outputs: {v: "${{ steps.s.outputs.v }}", list: "${{ steps.s.outputs.list }}"}
    steps: [{id: s, run: 'printf "v=%s{{ secrets.X }}\nlist=[\"%s{{ secrets.X }}\"]\n" "$" "$" >> "$GITHUB_OUTPUT"'}]
  b:
    needs: a
    runs-on: x
    strategy: {matrix: {v: "${{ fromJSON(needs.a.outputs.list) }}"}}
    env: {REF: "${{ github.head_ref }}"}
    steps:
      - run: echo 'matrix ${{ matrix.v }}, need ${{ needs.a.outputs.v }}'
      - run: 'echo "ref $REF"; test ! -e pwned'
  c:
    needs: a
    uses: ./.github/workflows/callee.yml
    with: {v: "${{ needs.a.outputs.v }}"}
`, "callee.yml": `
on: {workflow_call: {inputs: {v: {type: string}}, outputs: {v: {value: "${{ inputs.v }}"}}}}
jobs: {d: {runs-on: x, name: "d of ${{ inputs.v }}", steps: [{run: "echo 'passed ${{ inputs.v }}'"}]}}
`}, nil, withSecrets(map[string]string{"X": "hunter2"}))
	const ref = `a";touch${IFS}pwned;#$(touch${IFS}pwned)${{secrets.X}}`
	names, log, runs := h.hears(tgr.Event{Name: "pull_request", Action: "opened", Ref: "refs/pull/1/merge", BaseRef: "main", HeadRef: ref, Payload: []byte(`{}`)})
	const text = "${{ secrets.X }}"
	if diff := cmp.Diff([]string{"a success", "b (" + text + ") success", "c / d of " + text + " success"}, names); diff != "" {
		t.Errorf("jobs (-want +got):\n%s", diff)
	}
	for _, want := range []string{"matrix " + text + ", need " + text, "ref " + ref, "passed " + text} {
		if !strings.Contains(log, want) {
			t.Errorf("the log has no line %q", want)
		}
	}
	if strings.Contains(log, "hunter2") || strings.Contains(log, "***") {
		t.Errorf("the secret was put in:\n%s", log)
	}
	if runs[0].Title != ref {
		t.Errorf("the run is called %q, want %q", runs[0].Title, ref)
	}
}

// Nor is what a person types in.
func TestDispatchInputsAreNotEvaluated(t *testing.T) {
	h := open(t, files{"hand.yml": `
on: {workflow_dispatch: {inputs: {v: {type: string}}}}
run-name: by hand, ${{ inputs.v }}
jobs: {a: {runs-on: x, env: {V: "${{ inputs.v }}"}, steps: [{run: "echo 'input ${{ inputs.v }}, event ${{ github.event.inputs.v }}'; echo \"env $V\""}]}}
`}, nil, withSecrets(map[string]string{"X": "hunter2"}))
	const text = "${{ secrets.X }}"
	payload, err := json.Marshal(map[string]any{"workflow": "hand.yml", "inputs": map[string]string{"v": text}})
	if err != nil {
		t.Fatal(err)
	}
	names, log, runs := h.hears(tgr.Event{Name: "workflow_dispatch", Ref: "refs/heads/main", Payload: payload})
	if !slices.Equal(names, []string{"a success"}) || !strings.Contains(log, "input "+text+", event "+text) || !strings.Contains(log, "env "+text) ||
		strings.Contains(log, "***") || runs[0].Title != "by hand, "+text {
		t.Errorf("%q, %q:\n%s", names, runs[0].Title, log)
	}
}
