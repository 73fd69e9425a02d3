package workflow

import (
	"errors"
	"fmt"
	"strings"

	"github.com/terraphim/tgr/expr"
)

// What holds where a job does not say otherwise, in minutes.
const (
	DefaultTimeout       = 360
	DefaultCancelTimeout = 5
	MaxTimeout           = 35 * 24 * 60
)

// maxName is the length of a job's name with its matrix values, in characters.
const maxName = 100

// Expand settles everything that a job's matrix and expressions leave open, one Instance per combination, in
// GitHub's order. More than MaxMatrix combinations are an error, and so is a matrix that yields none. An error is
// an *EvalError.
func (j *Job) Expand(p *Plan, s *Scope) ([]Instance, error) {
	ev := j.evaluation(p, s)
	plan, err := ev.strategy(j.Strategy)
	if err != nil {
		return nil, err
	}
	out := make([]Instance, 0, len(plan.combos))
	for i, combo := range plan.combos {
		in := Instance{
			Key: j.Key, Index: i, Total: len(plan.combos), FailFast: plan.failFast, MaxParallel: plan.maxParallel,
		}
		matrix := expr.Null()
		if combo != nil {
			matrix = expr.Obj(combo)
			if in.Matrix, err = matrix.MarshalJSON(); err != nil {
				return nil, ev.fail("strategy", err)
			}
		} else {
			in.Matrix = []byte("null")
		}
		ev.env.Contexts.Set("matrix", matrix)
		ev.env.Contexts.Set("strategy", strategyValue(&in))
		if err := ev.instance(j, &in, combo); err != nil {
			return nil, err
		}
		out = append(out, in)
	}
	return out, nil
}

func strategyValue(in *Instance) expr.Value {
	return expr.Obj(expr.NewObject().
		Set("fail-fast", expr.Bool(in.FailFast)).
		Set("job-index", expr.Num(float64(in.Index))).
		Set("job-total", expr.Num(float64(in.Total))).
		Set("max-parallel", expr.Num(float64(in.MaxParallel))))
}

// expansion is an evaluated strategy. A job without a matrix has one combination, nil.
type expansion struct {
	combos      []*expr.Object
	failFast    bool
	maxParallel int
}

func (ev *evaluation) strategy(s *Strategy) (*expansion, error) {
	x := &expansion{combos: []*expr.Object{nil}, failFast: true, maxParallel: 1}
	if s == nil {
		return x, nil
	}
	matrix, failFast, maxParallel, err := ev.strategyParts(s)
	if err != nil {
		return nil, err
	}
	if x.failFast, err = ev.asBool("strategy.fail-fast", failFast, true); err != nil {
		return nil, err
	}
	if matrix.Kind() != expr.KindNull {
		combos, merr := expandMatrix(matrix)
		if merr != nil {
			return nil, ev.fail("strategy.matrix", errors.New(merr.message))
		}
		x.combos = combos
	}
	n, err := ev.asNumber("strategy.max-parallel", maxParallel, float64(len(x.combos)), float64(len(x.combos)))
	if err != nil {
		return nil, err
	}
	x.maxParallel = max(1, int(n))
	return x, nil
}

func (ev *evaluation) strategyParts(s *Strategy) (matrix, failFast, maxParallel expr.Value, err error) {
	if s.Expr != "" {
		v, err := ev.value("strategy", s.Expr)
		if err != nil || v.Object() == nil {
			return matrix, failFast, maxParallel, err
		}
		matrix, _ = field(v.Object(), "matrix")
		failFast, _ = field(v.Object(), "fail-fast")
		maxParallel, _ = field(v.Object(), "max-parallel")
		return matrix, failFast, maxParallel, nil
	}
	if len(s.Matrix) > 0 {
		raw, err := expr.FromJSON(s.Matrix)
		if err != nil {
			return matrix, failFast, maxParallel, ev.fail("strategy.matrix", err)
		}
		if matrix, err = ev.deep("strategy.matrix", raw); err != nil {
			return matrix, failFast, maxParallel, err
		}
	}
	if failFast, err = ev.value("strategy.fail-fast", s.FailFast); err != nil {
		return matrix, failFast, maxParallel, err
	}
	maxParallel, err = ev.value("strategy.max-parallel", s.MaxParallel)
	return matrix, failFast, maxParallel, err
}

// deep evaluates the expressions in a value that was read from the plan. What they yield is not looked at again.
func (ev *evaluation) deep(key string, v expr.Value) (expr.Value, error) {
	switch v.Kind() {
	case expr.KindString:
		return ev.value(key, v.Text())
	case expr.KindArray:
		items := make([]expr.Value, len(v.Items()))
		for i, item := range v.Items() {
			var err error
			if items[i], err = ev.deep(key, item); err != nil {
				return v, err
			}
		}
		return expr.Arr(items...), nil
	case expr.KindObject:
		return ev.deepObject(key, v.Object())
	}
	return v, nil
}

func (ev *evaluation) deepObject(key string, o *expr.Object) (expr.Value, error) {
	out := expr.NewObject()
	for _, name := range o.Keys() {
		child, _ := field(o, name)
		v, err := ev.deep(key, child)
		if err != nil {
			return v, err
		}
		if name == Insert {
			if v.Object() == nil {
				return v, ev.fail(key, fmt.Errorf("a mapping was expected for ${{ insert }}"))
			}
			for _, k := range v.Object().Keys() {
				inner, _ := field(v.Object(), k)
				out.Set(k, inner)
			}
			continue
		}
		if name, err = ev.text(key, name); err != nil {
			return v, err
		}
		out.Set(name, v)
	}
	return expr.Obj(out), nil
}

// instance evaluates the keys of a job for one combination.
func (ev *evaluation) instance(j *Job, in *Instance, combo *expr.Object) (err error) {
	if in.Name, err = ev.jobName(j, combo); err != nil {
		return err
	}
	if in.TimeoutMinutes, err = ev.number("timeout-minutes", j.TimeoutMinutes, DefaultTimeout, MaxTimeout); err != nil {
		return err
	}
	if in.CancelTimeout, err = ev.number("cancel-timeout-minutes", j.CancelTimeout, DefaultCancelTimeout, MaxTimeout); err != nil {
		return err
	}
	if in.ContinueOnError, err = ev.boolean("continue-on-error", j.ContinueOnError, false); err != nil {
		return err
	}
	if j.Concurrency != nil {
		if in.ConcurrencyKey, in.CancelOther, in.QueueMax, err = ev.concurrency(j.Concurrency); err != nil {
			return err
		}
	}
	if j.Environment != nil {
		if in.Environment, err = ev.environment(j.Environment); err != nil {
			return err
		}
	}
	if j.Uses == "" {
		in.RunsOn, in.RunsOnGroup, err = ev.runsOn(&j.RunsOn)
	}
	return err
}

func (ev *evaluation) environment(e *Environment) (string, error) {
	v, err := ev.value("environment", e.Name)
	if err != nil {
		return "", err
	}
	if o := v.Object(); o != nil {
		v, _ = field(o, "name")
	}
	return ev.scalarText("environment", v)
}

// runsOn evaluates the labels; one that yields a sequence stands for its items, and one that yields a mapping for
// group and labels.
func (ev *evaluation) runsOn(r *RunsOn) (labels []string, group string, err error) {
	if group, err = ev.text("runs-on", r.Group); err != nil {
		return nil, "", err
	}
	for _, label := range r.Labels {
		v, err := ev.value("runs-on", label)
		if err != nil {
			return nil, "", err
		}
		if o := v.Object(); o != nil {
			g, _ := field(o, "group")
			v, _ = field(o, "labels")
			if group, err = ev.scalarText("runs-on", g); err != nil {
				return nil, "", err
			}
		}
		items := v.Items()
		if v.Kind() != expr.KindArray {
			items = []expr.Value{v}
		}
		for _, item := range items {
			text, err := ev.scalarText("runs-on", item)
			if err != nil {
				return nil, "", err
			}
			if text != "" {
				labels = append(labels, text)
			}
		}
	}
	if len(labels) == 0 && group == "" {
		return nil, "", ev.fail("runs-on", fmt.Errorf("it evaluates to nothing; expected a label or a group"))
	}
	return labels, group, nil
}

// jobName is the name as shown: with the values of the matrix in parentheses, unless the name holds an expression.
func (ev *evaluation) jobName(j *Job, combo *expr.Object) (string, error) {
	name, err := ev.text("name", j.Name)
	if err != nil {
		return "", err
	}
	if name == "" {
		name = j.Key
	} else if strings.Contains(j.Name, "${{") {
		return name, nil
	}
	if combo == nil {
		return name, nil
	}
	values := leaves(expr.Obj(combo), nil)
	if len(values) == 0 {
		return name, nil
	}
	name += " (" + strings.Join(values, ", ") + ")"
	if r := []rune(name); len(r) > maxName {
		name = string(r[:maxName-3]) + "..."
	}
	return name, nil
}
