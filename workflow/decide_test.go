package workflow

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// compiled makes a plan of a source that has no problem.
func compiled(t testing.TB, src string, o Options) *Plan {
	t.Helper()
	w, problems := Parse("ci.yml", []byte(src))
	if Failed(problems) {
		t.Fatalf("parse: %s", report(problems))
	}
	if o.Trigger.Event == "" {
		o.Trigger.Event = "push"
	}
	p, problems := Compile(w, o)
	if len(problems) > 0 {
		t.Fatalf("compile: %s", report(problems))
	}
	return p
}

// jobSource is a workflow with one job "a" of the given lines.
func jobSource(lines ...string) string {
	src := "on: push\njobs:\n  first: {runs-on: x}\n  a:\n"
	for _, l := range lines {
		src += "    " + l + "\n"
	}
	if !strings.Contains(src, "runs-on: ") || !strings.Contains(strings.Join(lines, "\n"), "runs-on") {
		src += "    runs-on: linux\n"
	}
	return src
}

func TestDecide(t *testing.T) {
	ok, failed, skipped := Need{Result: "success"}, Need{Result: "failure"}, Need{Result: "skipped"}
	for _, tt := range []struct {
		cond  string
		scope Scope
		want  bool
	}{
		{"", Scope{}, true},
		{"false", Scope{}, false},
		{"github.ref == 'refs/heads/main'", Scope{GitHub: map[string]any{"ref": "refs/heads/main"}}, true},
		{"vars.x && inputs.y", Scope{Vars: map[string]string{"X": "1"}, Inputs: map[string]any{"y": true}}, true},
		{"", Scope{Needs: map[string]Need{"first": failed}, Ancestors: map[string]Need{"first": failed}}, false},
		{"", Scope{Needs: map[string]Need{"first": skipped}, Ancestors: map[string]Need{"first": skipped}}, false},
		{"", Scope{Needs: map[string]Need{"first": ok}, Ancestors: map[string]Need{"first": ok, "zeroth": failed}}, false},
		{"success('first')", Scope{Needs: map[string]Need{"first": ok}, Ancestors: map[string]Need{"first": ok, "zeroth": failed}}, true},
		{"success('FIRST')", Scope{Ancestors: map[string]Need{"first": ok}}, true},
		{"success('nobody')", Scope{}, false},
		{"failure()", Scope{Ancestors: map[string]Need{"first": ok, "zeroth": failed}}, true},
		{"failure('first')", Scope{Ancestors: map[string]Need{"first": ok, "zeroth": failed}}, false},
		{"always()", Scope{Cancelled: true, Ancestors: map[string]Need{"first": failed}}, true},
		{"cancelled()", Scope{Cancelled: true}, true},
		{"cancelled()", Scope{}, false},
		{"", Scope{Cancelled: true}, false},
		{"${{ !cancelled() }}", Scope{}, true},
		{"needs.first.outputs.go == 'yes' && needs.first.result == 'success'",
			Scope{Needs: map[string]Need{"first": {Result: "success", Outputs: map[string]string{"go": "yes"}}}}, true},
		{"fromJSON(needs.first.outputs.list)[1] == 2",
			Scope{Needs: map[string]Need{"first": {Outputs: map[string]string{"list": "[1,2]"}}}}, true},
	} {
		p := compiled(t, jobSource("needs: first", fmt.Sprintf("if: %q", tt.cond)), Options{})
		got, err := p.Job("a").Decide(p, &tt.scope)
		if err != nil || got != tt.want {
			t.Errorf("if: %q with %+v: got %v, %v; want %v", tt.cond, tt.scope, got, err, tt.want)
		}
	}
}

func TestDecideErrorNamesThePlace(t *testing.T) {
	p := compiled(t, jobSource("if: fromJSON('{')"), Options{})
	_, err := p.Job("a").Decide(p, &Scope{})
	var ee *EvalError
	if !errors.As(err, &ee) || !strings.HasPrefix(err.Error(), "ci.yml:5:9: jobs.a.if: ") {
		t.Errorf("got %v", err)
	}
}

func TestExpand(t *testing.T) {
	for _, tt := range []struct {
		name  string
		lines []string
		want  []string // name, and what differs from the defaults
	}{
		{"no matrix", nil, []string{"a"}},
		{"name", []string{"name: The ${{ github.x }}"}, []string{"The X"}},
		{"order", []string{"strategy: {matrix: {fruit: [apple, pear], animal: [cat, dog]}}"},
			[]string{"a (apple, cat)", "a (apple, dog)", "a (pear, cat)", "a (pear, dog)"}},
		{"literal name", []string{"name: N", "strategy: {matrix: {x: [1.0, true, null, '']}}"}, []string{"N (1)", "N (true)", "N", "N"}},
		{"name of its own", []string{"name: N ${{ matrix.x }}", "strategy: {matrix: {x: [1, 2]}}"}, []string{"N 1", "N 2"}},
		{"nested", []string{"strategy: {matrix: {x: [{a: 1, b: [2, 3]}]}}"}, []string{"a (1, 2, 3)"}},
		{"include of the documentation", []string{"strategy:", "  matrix:", "    fruit: [apple, pear]", "    animal: [cat, dog]", "    include:",
			"      - color: green", "      - {color: pink, animal: cat}", "      - {fruit: apple, shape: circle}",
			"      - {fruit: banana}", "      - {fruit: banana, animal: cat}"},
			[]string{"a (apple, cat, pink, circle)", "a (apple, dog, green, circle)", "a (pear, cat, pink)", "a (pear, dog, green)", "a (banana)", "a (banana, cat)"}},
		{"include only", []string{"strategy: {matrix: {include: [{a: 1}, {b: 2}]}}"}, []string{"a (1)", "a (2)"}},
		{"exclude in part", []string{"strategy: {matrix: {os: [l, w], v: [{n: 1, x: y}, {n: 2}], exclude: [{os: l, v: {n: 1}}]}}"},
			[]string{"a (l, 2)", "a (w, 1, y)", "a (w, 2)"}},
		{"exclude without case", []string{"strategy: {matrix: {os: [Linux, w], exclude: [{OS: linux}]}}"}, []string{"a (w)"}},
		{"dynamic", []string{"strategy: {matrix: \"${{ fromJSON(needs.first.outputs.m) }}\"}", "needs: first"}, []string{"a (p)", "a (q)"}},
		{"dynamic axis", []string{"strategy: {matrix: {x: \"${{ fromJSON('[1,2]') }}\", y: [\"${{ github.x }}\"]}}"}, []string{"a (1, X)", "a (2, X)"}},
		{"dynamic whole", []string{"strategy: ${{ fromJSON('{\"matrix\":{\"x\":[1]},\"fail-fast\":false}') }}"}, []string{"a (1) slow"}},
		{"insert", []string{"strategy:", "  matrix:", "    ${{ insert }}: ${{ fromJSON('{\"x\":[1]}') }}", "    y: [2]"}, []string{"a (1, 2)"}},
		{"runs-on", []string{"strategy: {matrix: {x: ['[\"self-hosted\",\"arm\"]']}}", "name: n${{ 1 }}", "runs-on: ${{ fromJSON(matrix.x) }}"}, []string{"n1 on self-hosted+arm"}},
		{"runs-on group", []string{"runs-on: ${{ fromJSON('{\"group\":\"g\",\"labels\":\"l\"}') }}"}, []string{"a on l of g"}},
		{"timeout", []string{"timeout-minutes: ${{ fromJSON('1.5') }}", "continue-on-error: ${{ github.x == 'X' }}"}, []string{"a 1.5min lenient"}},
		{"timeout of more than 35 days", []string{"timeout-minutes: 999999"}, []string{"a 50400min"}},
		{"timeout of a fraction", []string{"timeout-minutes: 0.5"}, []string{"a 0.5min"}},
		{"timeout of almost nothing", []string{"timeout-minutes: 1e-9"}, []string{"a 1e-09min"}},
		{"timeout without end", []string{"timeout-minutes: .inf"}, []string{"a 50400min"}},
		{"environment", []string{"environment: ${{ github.x }}", "concurrency: {group: 'g-${{ github.x }}', queue: max}"}, []string{"a in X group g-X max"}},
		{"concurrency of one expression", []string{"concurrency: ${{ fromJSON('{\"group\":\"z\",\"cancel-in-progress\":true}') }}"}, []string{"a group z cancels"}},
		{"empty values", []string{"timeout-minutes: ${{ github.none }}", "continue-on-error: ${{ github.none }}", "environment: ${{ github.none }}", "concurrency: ${{ github.none }}"}, []string{"a"}},
		{"strategy context", []string{"name: ${{ strategy.job-index }}/${{ strategy.job-total }} ${{ strategy.max-parallel }} ${{ strategy.fail-fast }}", "strategy: {max-parallel: 1, matrix: {x: [1, 2]}}"}, []string{"0/2 1 true", "1/2 1 true"}},
		{"infinity", []string{"strategy: {matrix: {x: [.inf]}}"}, []string{"a (Infinity)"}},
		{"long name", []string{"name: " + strings.Repeat("n", 98), "strategy: {matrix: {x: [1]}}"}, []string{strings.Repeat("n", 97) + "..."}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := compiled(t, jobSource(tt.lines...), Options{})
			in, err := p.Job("a").Expand(p, &Scope{
				GitHub: map[string]any{"x": "X"},
				Needs:  map[string]Need{"first": {Outputs: map[string]string{"m": `{"x":["p","q"]}`}}},
			})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for i, n := range in {
				if n.Index != i || n.Total != len(in) || n.Key != "a" {
					t.Errorf("instance %d: index %d, total %d, key %s", i, n.Index, n.Total, n.Key)
				}
				got = append(got, summary(n))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// summary is an instance's name and all in which it differs from an ordinary one.
func summary(n Instance) string {
	s := n.Name
	if l := strings.Join(n.RunsOn, "+"); l != "linux" {
		s += " on " + l
	}
	if n.RunsOnGroup != "" {
		s += " of " + n.RunsOnGroup
	}
	if !n.FailFast {
		s += " slow"
	}
	if n.TimeoutMinutes != DefaultTimeout {
		s += fmt.Sprintf(" %vmin", n.TimeoutMinutes)
	}
	if n.ContinueOnError {
		s += " lenient"
	}
	if n.Environment != "" {
		s += " in " + n.Environment
	}
	if n.ConcurrencyKey != "" {
		s += " group " + n.ConcurrencyKey
	}
	if n.CancelOther {
		s += " cancels"
	}
	if n.QueueMax {
		s += " max"
	}
	return s
}

func TestExpandMatrixJSON(t *testing.T) {
	p := compiled(t, jobSource("strategy: {matrix: {z: [1.10], a: ['1.10'], m: [{y: 1, x: [true, null]}]}}"), Options{})
	in, err := p.Job("a").Expand(p, &Scope{})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(in[0].Matrix), `{"z":1.1,"a":"1.10","m":{"y":1,"x":[true,null]}}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	p = compiled(t, jobSource(), Options{})
	if in, err = p.Job("a").Expand(p, &Scope{}); err != nil || string(in[0].Matrix) != "null" || in[0].MaxParallel != 1 {
		t.Errorf("without a matrix: got %+v, %v", in, err)
	}
}

func TestExpandErrors(t *testing.T) {
	many := make([]int, MaxMatrix+1)
	list, _ := json.Marshal(many)
	for _, tt := range []struct{ line, want string }{
		{"strategy: {matrix: \"${{ fromJSON('[]') }}\"}", "ci.yml:5:15: jobs.a.strategy.matrix: the matrix is not a mapping"},
		{"strategy: {matrix: \"${{ fromJSON('{}') }}\"}", "ci.yml:5:15: jobs.a.strategy.matrix: the matrix must define at least one vector"},
		{"strategy: {matrix: {x: \"${{ fromJSON('[]') }}\"}}", "ci.yml:5:15: jobs.a.strategy.matrix: the matrix vector 'x' does not contain any values"},
		{"strategy: {matrix: {x: \"${{ fromJSON('" + string(list) + "') }}\"}}", "ci.yml:5:15: jobs.a.strategy.matrix: the matrix has more than 256 combinations"},
		{"strategy: {matrix: {x: \"${{ github.none }}\"}}", "ci.yml:5:15: jobs.a.strategy.matrix: the matrix vector 'x' is not a sequence"},
		{"strategy: {max-parallel: \"${{ 0 }}\"}", "ci.yml:5:15: jobs.a.strategy.max-parallel: a number above zero was expected, not '0'"},
		{"timeout-minutes: ${{ format('soon') }}", "ci.yml:5:22: jobs.a.timeout-minutes: a number above zero was expected, not 'soon'"},
		{"timeout-minutes: 0", "ci.yml:5:22: jobs.a.timeout-minutes: a number above zero was expected, not '0'"},
		{"timeout-minutes: -1", "ci.yml:5:22: jobs.a.timeout-minutes: a number above zero was expected, not '-1'"},
		{"timeout-minutes: ${{ fromJSON('-0.5') }}", "ci.yml:5:22: jobs.a.timeout-minutes: a number above zero was expected, not '-0.5'"},
		{"timeout-minutes: .nan", "ci.yml:5:22: jobs.a.timeout-minutes: a number above zero was expected, not 'NaN'"},
		{"cancel-timeout-minutes: -1", "ci.yml:5:29: jobs.a.cancel-timeout-minutes: a number above zero was expected, not '-1'"},
		{"timeout-minutes: ${{ fromJSON('[1]') }}", "ci.yml:5:22: jobs.a.timeout-minutes: a string was expected, not a sequence"},
		{"continue-on-error: ${{ format('maybe') }}", "ci.yml:5:24: jobs.a.continue-on-error: a boolean was expected, not 'maybe'"},
		{"runs-on: ${{ github.none }}", "ci.yml:5:14: jobs.a.runs-on: it evaluates to nothing; expected a label or a group"},
		{"runs-on: ${{ fromJSON('[[1]]') }}", "ci.yml:5:14: jobs.a.runs-on: a string was expected, not a sequence"},
		{"concurrency: {group: x, queue: max, cancel-in-progress: \"${{ true }}\"}", "ci.yml:5:18: jobs.a.concurrency: 'queue: max' cannot be used together with 'cancel-in-progress: true'"},
		{"environment: ${{ fromJSON('[1]') }}", "ci.yml:5:18: jobs.a.environment: a string was expected, not a sequence"},
		{"name: ${{ fromJSON('{') }}", "ci.yml:5:11: jobs.a.name: "},
	} {
		p := compiled(t, jobSource(tt.line), Options{})
		in, err := p.Job("a").Expand(p, &Scope{})
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%.80s: got %v, %v; want %s", tt.line, in, err, tt.want)
		}
	}
}

func TestEvalOfTheWorkflow(t *testing.T) {
	p := compiled(t, "on: push\nrun-name: 'Run ${{ github.n }} '\nconcurrency: {group: 'g${{ vars.v }}', cancel-in-progress: '${{ inputs.c }}'}\njobs: {a: {runs-on: x}}\n", Options{})
	s := &Scope{GitHub: map[string]any{"n": 7}, Vars: map[string]string{"v": "1"}, Inputs: map[string]any{"c": true}}
	if name, err := p.EvalRunName(s); err != nil || name != "Run 7" {
		t.Errorf("run-name: got %q, %v", name, err)
	}
	if g, cancel, queue, err := p.EvalConcurrency(s); g != "g1" || !cancel || queue || err != nil {
		t.Errorf("concurrency: got %q, %v, %v, %v", g, cancel, queue, err)
	}
	p = compiled(t, jobSource(), Options{})
	if name, err := p.EvalRunName(s); err != nil || name != "" {
		t.Errorf("no run-name: got %q, %v", name, err)
	}
	if g, _, _, err := p.EvalConcurrency(s); g != "" || err != nil {
		t.Errorf("no concurrency: got %q, %v", g, err)
	}
	p = compiled(t, "on: push\nrun-name: ${{ fromJSON('x') }}\njobs: {a: {runs-on: x}}\n", Options{})
	if _, err := p.EvalRunName(s); err == nil || !strings.HasPrefix(err.Error(), "ci.yml:2:11: run-name: ") {
		t.Errorf("wrong run-name: got %v", err)
	}
}
