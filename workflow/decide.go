package workflow

import (
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/terraphim/tgr/expr"
)

// Scope is what the expressions of a plan see when a job is decided on. Values are plain JSON-like Go data.
// It is only read.
type Scope struct {
	GitHub    map[string]any
	Vars      map[string]string
	Secrets   map[string]string
	Inputs    map[string]any
	Needs     map[string]Need // the needs context: direct needs
	Ancestors map[string]Need // every need, direct or not: what success() and failure() look at
	Cancelled bool            // the run was cancelled
}

// Format implements fmt.Formatter: whatever formats a Scope shows none of its secrets.
func (Scope) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "***") }

// LogValue implements slog.LogValuer likewise.
func (Scope) LogValue() slog.Value { return slog.StringValue("***") }

// Need is a finished job that another one needed.
type Need struct {
	Result  string            `json:"result"` // success, failure, cancelled or skipped
	Outputs map[string]string `json:"outputs"`
}

// EvalError is an expression of a workflow that could not be evaluated, or whose value makes no sense. It is the
// workflow's fault.
type EvalError struct {
	File string
	Pos  Pos    // of the key's value; zero where it is not known
	Key  string // the key: "jobs.build.runs-on"
	Err  error
}

// Error names the file, the place and the key.
func (e *EvalError) Error() string {
	place := e.File
	if e.Pos.Line > 0 {
		place = fmt.Sprintf("%s:%d:%d", e.File, e.Pos.Line, e.Pos.Column)
	}
	return fmt.Sprintf("%s: %s: %v", place, e.Key, e.Err)
}

// Unwrap returns the cause.
func (e *EvalError) Unwrap() error { return e.Err }

// evaluation evaluates keys of one job, or of the workflow where key is empty.
type evaluation struct {
	file string
	key  string
	at   map[string]Pos
	home Pos // the place where at has none
	env  *expr.Env
}

func (p *Plan) evaluation(s *Scope) *evaluation {
	return &evaluation{file: p.File, at: p.At, env: &expr.Env{Contexts: s.contexts(), Functions: s.functions()}}
}

func (j *Job) evaluation(p *Plan, s *Scope) *evaluation {
	ev := p.evaluation(s)
	ev.key, ev.at, ev.home = "jobs."+j.Key+".", j.At, j.Pos
	ev.env.Contexts.Set("needs", needsValue(s.Needs))
	return ev
}

func (ev *evaluation) fail(key string, err error) error {
	at, ok := ev.at[key]
	if !ok {
		at, ok = ev.at[strings.SplitN(key, ".", 2)[0]]
	}
	if !ok {
		at = ev.home
	}
	return &EvalError{File: ev.file, Pos: at, Key: ev.key + key, Err: err}
}

// value evaluates a string that may hold ${{ }}.
func (ev *evaluation) value(key, src string) (expr.Value, error) {
	if !strings.Contains(src, "${{") {
		return expr.Str(src), nil
	}
	t, err := expr.ParseTemplate(src)
	if err != nil {
		return expr.Null(), ev.fail(key, err)
	}
	v, err := t.Eval(ev.env)
	if err != nil {
		return expr.Null(), ev.fail(key, err)
	}
	return v, nil
}

// text evaluates to a string; a sequence or a mapping is an error.
func (ev *evaluation) text(key, src string) (string, error) {
	v, err := ev.value(key, src)
	if err != nil {
		return "", err
	}
	return ev.scalarText(key, v)
}

func (ev *evaluation) scalarText(key string, v expr.Value) (string, error) {
	if k := v.Kind(); k == expr.KindArray || k == expr.KindObject {
		return "", ev.fail(key, fmt.Errorf("a string was expected, not %s", article(k)))
	}
	return v.Text(), nil
}

func article(k expr.Kind) string {
	if k == expr.KindArray {
		return "a sequence"
	}
	return "a mapping"
}

// boolean evaluates to a boolean; what is empty is the default.
func (ev *evaluation) boolean(key, src string, otherwise bool) (bool, error) {
	v, err := ev.value(key, src)
	if err != nil {
		return false, err
	}
	return ev.asBool(key, v, otherwise)
}

func (ev *evaluation) asBool(key string, v expr.Value, otherwise bool) (bool, error) {
	if v.Kind() == expr.KindBoolean {
		return v.Truthy(), nil
	}
	switch text, err := ev.scalarText(key, v); {
	case err != nil:
		return false, err
	case text == "":
		return otherwise, nil
	case text == "true" || text == "false":
		return text == "true", nil
	default:
		return false, ev.fail(key, fmt.Errorf("a boolean was expected, not '%s'", clip(text)))
	}
}

// number evaluates to a number above zero; what is empty is the default.
func (ev *evaluation) number(key, src string, otherwise, limit float64) (float64, error) {
	v, err := ev.value(key, src)
	if err != nil {
		return 0, err
	}
	return ev.asNumber(key, v, otherwise, limit)
}

func (ev *evaluation) asNumber(key string, v expr.Value, otherwise, limit float64) (float64, error) {
	text, err := ev.scalarText(key, v)
	if err != nil {
		return 0, err
	}
	if text == "" {
		return otherwise, nil
	}
	f := v.Float()
	if !(f > 0) {
		return 0, ev.fail(key, fmt.Errorf("a number above zero was expected, not '%s'", clip(text)))
	}
	return min(f, limit), nil
}

// contexts are those that are the same for every job of a run.
func (s *Scope) contexts() *expr.Object {
	return expr.NewObject().
		Set("github", orObject(expr.FromAny(s.GitHub))).
		Set("vars", orObject(expr.FromAny(s.Vars))).
		Set("secrets", orObject(expr.FromAny(s.Secrets))).
		Set("inputs", orObject(expr.FromAny(s.Inputs)))
}

func orObject(v expr.Value) expr.Value {
	if v.Kind() == expr.KindNull {
		return expr.Obj(expr.NewObject())
	}
	return v
}

func needsValue(needs map[string]Need) expr.Value {
	out := expr.NewObject()
	for _, name := range sortedKeys(needs) {
		n := needs[name]
		out.Set(name, expr.Obj(expr.NewObject().
			Set("result", expr.Str(n.Result)).
			Set("outputs", orObject(expr.FromAny(n.Outputs)))))
	}
	return expr.Obj(out)
}

// functions are the status functions at the level of jobs. With arguments they look at the jobs named, without at
// every ancestor.
func (s *Scope) functions() map[string]expr.Function {
	results := func(args []expr.Value) []string {
		var out []string
		if len(args) == 0 {
			for _, n := range s.Ancestors {
				out = append(out, n.Result)
			}
			return out
		}
		for _, a := range args {
			n, ok := lookup(s.Ancestors, a.Text())
			if !ok {
				n, _ = lookup(s.Needs, a.Text())
			}
			out = append(out, n.Result)
		}
		return out
	}
	fixed := func(v bool) expr.Function {
		return expr.Function{Call: func([]expr.Value) (expr.Value, error) { return expr.Bool(v), nil }}
	}
	return map[string]expr.Function{
		"always":    fixed(true),
		"cancelled": fixed(s.Cancelled),
		"success": {Max: -1, Call: func(args []expr.Value) (expr.Value, error) {
			for _, r := range results(args) {
				if r != "success" {
					return expr.Bool(false), nil
				}
			}
			return expr.Bool(!s.Cancelled), nil
		}},
		"failure": {Max: -1, Call: func(args []expr.Value) (expr.Value, error) {
			for _, r := range results(args) {
				if r == "failure" {
					return expr.Bool(true), nil
				}
			}
			return expr.Bool(false), nil
		}},
	}
}

// Decide says whether the job is to run: its if, with the status functions looking at the jobs it needed.
// An error is an *EvalError.
func (j *Job) Decide(p *Plan, s *Scope) (run bool, err error) {
	ev := j.evaluation(p, s)
	e, err := expr.ParseCondition(j.If)
	if err != nil {
		return false, ev.fail("if", err)
	}
	v, err := e.Eval(ev.env)
	if err != nil {
		return false, ev.fail("if", err)
	}
	return v.Truthy(), nil
}

// EvalConcurrency evaluates the workflow's concurrency. An empty group means that there is none.
func (p *Plan) EvalConcurrency(s *Scope) (group string, cancelInProgress bool, queueMax bool, err error) {
	if p.Concurrency == nil {
		return "", false, false, nil
	}
	return p.evaluation(s).concurrency(p.Concurrency)
}

func (ev *evaluation) concurrency(c *Concurrency) (group string, cancel, queueMax bool, err error) {
	v, err := ev.value("concurrency", c.Group)
	if err != nil {
		return "", false, false, err
	}
	queue := c.Queue
	if o := v.Object(); o != nil { // the whole of it was one expression
		g, _ := field(o, "group")
		in, _ := field(o, "cancel-in-progress")
		q, _ := field(o, "queue")
		if cancel, err = ev.asBool("concurrency", in, false); err != nil {
			return "", false, false, err
		}
		v, queue = g, q.Text()
	} else if cancel, err = ev.boolean("concurrency", c.CancelInProgress, false); err != nil {
		return "", false, false, err
	}
	if group, err = ev.scalarText("concurrency", v); err != nil {
		return "", false, false, err
	}
	if queue == "max" && cancel {
		return "", false, false, ev.fail("concurrency", fmt.Errorf("'queue: max' cannot be used together with 'cancel-in-progress: true'"))
	}
	return group, cancel, queue == "max", nil
}

// EvalRunName evaluates run-name; "" where the workflow has none.
func (p *Plan) EvalRunName(s *Scope) (string, error) {
	if p.RunName == "" {
		return "", nil
	}
	name, err := p.evaluation(s).text("run-name", p.RunName)
	return strings.TrimSpace(name), err
}
