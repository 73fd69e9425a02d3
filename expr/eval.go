package expr

import (
	"errors"
	"math"
	"strings"
)

// Env is what an evaluation sees. It may be used by many evaluations at once as long as nobody changes it.
type Env struct {
	// Contexts holds the known names: github, env, … Those set with SetLazy are loaded when an expression
	// first reaches them.
	Contexts *Object
	// Functions are those beyond the built-in ones, which they cannot replace. Names are in lower case:
	// success, failure, always, cancelled, hashfiles.
	Functions map[string]Function
	Limits    Limits
}

// Function is a function that the caller provides. Call gets at least Min and at most Max arguments; its error becomes
// the message of an Evaluation error at the place of the call.
type Function struct {
	Min, Max int // Max -1: no limit
	Call     func(args []Value) (Value, error)
}

// Limits bound what one evaluation may use. Zero fields stand for the defaults.
type Limits struct {
	// Steps bounds the work: nodes evaluated, items visited, blocks of text compared. Default 2,000,000,
	// which is well under a second.
	Steps int
	// Bytes bounds the memory of all values that the evaluation makes; contexts are not counted.
	// Default 10 MiB, as in GitHub's runner.
	Bytes int
}

const (
	defaultSteps = 2_000_000
	defaultBytes = 10 << 20
)

// ErrLimit is what the errors of an evaluation that exceeds its Limits wrap.
var ErrLimit = errors.New("expression limit reached")

var (
	errSteps = limitError("The maximum number of evaluation steps was exceeded")
	errBytes = limitError("The maximum allowed memory size was exceeded")
)

// limitError is ErrLimit with a message of its own.
type limitError string

func (e limitError) Error() string        { return string(e) }
func (e limitError) Is(target error) bool { return target == ErrLimit }

// Eval computes the expression. Contexts and functions that env does not have are Parsing errors, wherever in the
// expression they are; everything else that goes wrong is an Evaluation error. A nil env is an empty one.
func (e *Expr) Eval(env *Env) (Value, error) {
	if env == nil {
		env = &Env{}
	}
	if err := e.checkEnv(env); err != nil {
		return Value{}, err
	}
	v, err := newEvaluator(env, e.src).eval(e.root)
	if err != nil {
		return Value{}, err
	}
	return v, nil
}

// evaluator computes one expression or template, within one budget.
type evaluator struct {
	env   *Env
	src   *source // for the places of errors
	steps int     // left
	bytes int     // left
}

func newEvaluator(env *Env, src *source) *evaluator {
	ev := &evaluator{env: env, src: src, steps: env.Limits.Steps, bytes: env.Limits.Bytes}
	if ev.steps <= 0 {
		ev.steps = defaultSteps
	}
	if ev.bytes <= 0 {
		ev.bytes = defaultBytes
	}
	return ev
}

// work takes n steps from the budget.
func (ev *evaluator) work(n int) error {
	if ev.steps -= n; ev.steps < 0 {
		ev.steps = 0
		return errSteps
	}
	return nil
}

// read takes the steps for looking at n bytes of text.
func (ev *evaluator) read(n int) error { return ev.work(1 + n/textBlock) }

// textBlock is how many bytes of text are read in about the time of one step.
const textBlock = 16

// memory takes n bytes from the budget; call it before allocating them.
func (ev *evaluator) memory(n int) error {
	if n > ev.bytes {
		return errBytes
	}
	ev.bytes -= n
	return nil
}

// fail makes err an error of n, unless a deeper node did.
func (ev *evaluator) fail(n node, err error) *Error {
	e := ev.src.at(Evaluation, n.offset(), err.Error())
	e.Err = err
	return e
}

func (ev *evaluator) eval(n node) (Value, *Error) {
	if err := ev.work(1); err != nil {
		return Value{}, ev.fail(n, err)
	}
	switch n := n.(type) {
	case *literalNode:
		return n.value, nil
	case *contextNode:
		v, _, err := ev.env.Contexts.Get(n.name)
		if err != nil {
			return Value{}, ev.fail(n, err)
		}
		return v, nil
	case *indexNode:
		return ev.index(n)
	case *notNode:
		v, err := ev.eval(n.x)
		return Bool(!v.Truthy()), err
	case *compareNode:
		return ev.compare(n)
	case *logicNode:
		return ev.logic(n)
	case *callNode:
		return ev.call(n)
	default:
		panic("expr: unknown node")
	}
}

// logic returns the first operand that decides, or the last one.
func (ev *evaluator) logic(n *logicNode) (v Value, err *Error) {
	for _, arg := range n.args {
		if v, err = ev.eval(arg); err != nil || v.Truthy() == (n.op == tokOr) {
			return v, err
		}
	}
	return v, nil
}

func (ev *evaluator) compare(n *compareNode) (Value, *Error) {
	x, err := ev.eval(n.x)
	if err != nil {
		return Value{}, err
	}
	y, err := ev.eval(n.y)
	if err != nil {
		return Value{}, err
	}
	if err := ev.read(comparison(x, y)); err != nil {
		return Value{}, ev.fail(n, err)
	}
	switch n.op {
	case tokEqual:
		return Bool(Equal(x, y)), nil
	case tokNotEqual:
		return Bool(!Equal(x, y)), nil
	case tokLess:
		return Bool(order(x, y) == before), nil
	case tokLessEqual:
		return Bool(Equal(x, y) || order(x, y) == before), nil
	case tokGreater:
		return Bool(order(x, y) == after), nil
	default:
		return Bool(Equal(x, y) || order(x, y) == after), nil
	}
}

// call computes a function. Arguments are computed first, except those of case.
func (ev *evaluator) call(n *callNode) (Value, *Error) {
	if n.builtin != nil && n.builtin.call == nil {
		return ev.choose(n)
	}
	args := make([]Value, len(n.args))
	for i, arg := range n.args {
		var err *Error
		if args[i], err = ev.eval(arg); err != nil {
			return Value{}, err
		}
	}
	var v Value
	var err error
	if n.builtin != nil {
		v, err = n.builtin.call(ev, args)
	} else {
		v, err = ev.env.Functions[strings.ToLower(n.name)].Call(args)
	}
	if err != nil {
		return Value{}, ev.fail(n, err)
	}
	return v, nil
}

// choose computes case(when, then, when, then, …, otherwise), and no more of it than it must.
func (ev *evaluator) choose(n *callNode) (Value, *Error) {
	last := len(n.args) - 1
	for i := 0; i < last; i += 2 {
		when, err := ev.eval(n.args[i])
		if err != nil {
			return Value{}, err
		}
		if when.kind != KindBoolean {
			return Value{}, ev.fail(n.args[i], errCasePredicate)
		}
		if when.Truthy() {
			return ev.eval(n.args[i+1])
		}
	}
	return ev.eval(n.args[last])
}

var errCasePredicate = errors.New("case predicate must evaluate to a boolean value")

// key is what stands in brackets, as objects and as arrays see it.
type key struct {
	filter   bool // .* or [*]
	name     string
	named    bool
	position int
	placed   bool
}

func keyOf(v Value) key {
	k := key{named: v.primitive()}
	if k.named {
		k.name = v.Text()
	}
	if f := v.Float(); f >= 0 && f <= math.MaxInt32 {
		k.position, k.placed = int(f), true
	}
	return k
}

func (ev *evaluator) index(n *indexNode) (Value, *Error) {
	x, err := ev.eval(n.x)
	if err != nil {
		return Value{}, err
	}
	k := key{filter: true}
	if literal, ok := n.key.(*literalNode); ok && literal.value.kind == KindString && x.kind == KindObject {
		k = key{name: literal.value.str, named: true} // the common case: a property
	} else if n.key != nil {
		v, err := ev.eval(n.key)
		if err != nil {
			return Value{}, err
		}
		if err := ev.read(len(v.str)); err != nil {
			return Value{}, ev.fail(n, err)
		}
		k = keyOf(v)
	}
	if k.filter || x.kind == KindArray && x.arr.filtered {
		list, err2 := ev.filter(x, k)
		if err2 != nil {
			return Value{}, ev.fail(n, err2)
		}
		return newArray(list, true), nil
	}
	v, _, err2 := ev.member(x, k)
	if err2 != nil {
		return Value{}, ev.fail(n, err2)
	}
	return v, nil
}

// member returns the one member of x that k means, and whether there is one.
func (ev *evaluator) member(x Value, k key) (Value, bool, error) {
	switch {
	case x.kind == KindObject && k.named:
		if err := ev.read(len(k.name)); err != nil {
			return Value{}, false, err
		}
		return x.obj.Get(k.name)
	case x.kind == KindArray && k.placed && k.position < len(x.arr.items):
		return x.arr.items[k.position], true, nil
	default:
		return Value{}, false, nil
	}
}

// filter returns all members of x, or, where x is a filter's result itself, of each of its items those that k means.
func (ev *evaluator) filter(x Value, k key) ([]Value, error) {
	if x.kind != KindArray || !x.arr.filtered {
		return ev.members(nil, x)
	}
	var list []Value
	for _, item := range x.arr.items {
		if k.filter {
			var err error
			if list, err = ev.members(list, item); err != nil {
				return nil, err
			}
			continue
		}
		if err := ev.work(1); err != nil {
			return nil, err
		}
		v, ok, err := ev.member(item, k)
		if err != nil {
			return nil, err
		}
		if ok {
			if list, err = ev.append(list, v); err != nil {
				return nil, err
			}
		}
	}
	return list, nil
}

// members appends all members of x to list; what has none adds none.
func (ev *evaluator) members(list []Value, x Value) ([]Value, error) {
	if err := ev.work(1); err != nil {
		return nil, err
	}
	var err error
	for _, v := range x.Items() {
		if list, err = ev.append(list, v); err != nil {
			return nil, err
		}
	}
	for i := range x.obj.Len() {
		v, err := x.obj.at(i)
		if err != nil {
			return nil, err
		}
		if list, err = ev.append(list, v); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// append appends v to a list that this evaluation makes.
func (ev *evaluator) append(list []Value, v Value) ([]Value, error) {
	if err := ev.memory(valueSize); err != nil {
		return nil, err
	}
	return append(list, v), nil
}

// valueSize is about what an item of a list costs in bytes.
const valueSize = 48
