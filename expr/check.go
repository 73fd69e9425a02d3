package expr

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// FunctionSig is a function and how many arguments it takes.
type FunctionSig struct {
	Name     string
	Min, Max int // Max -1: no limit
}

// mismatch says in GitHub's words what is wrong with a number of arguments, "" if nothing is.
func (f *FunctionSig) mismatch(args int) string {
	switch {
	case args < f.Min:
		return "Too few parameters supplied"
	case f.Max >= 0 && args > f.Max:
		return "Too many parameters supplied"
	case args%2 == 0 && strings.EqualFold(f.Name, "case"):
		return "Even number of parameters supplied, requires an odd number of parameters"
	default:
		return ""
	}
}

// Scope is what one place of a workflow file may use: contexts, and functions beyond the built-in ones.
// Names have no case. The zero Scope allows the built-in functions and nothing else.
type Scope struct {
	Contexts  []string
	Functions []FunctionSig
}

// NewScope reads the notation of GitHub's workflow schema: "github" is a context, "hashFiles(1,255)" and
// "success(0,MAX)" are functions.
func NewScope(entries ...string) (*Scope, error) {
	s := &Scope{}
	for _, entry := range entries {
		name, rest, isFunction := strings.Cut(entry, "(")
		if !isFunction {
			s.Contexts = append(s.Contexts, name)
			continue
		}
		sig, err := parseSignature(name, rest)
		if err != nil {
			return nil, fmt.Errorf("scope entry %q: %w", entry, err)
		}
		s.Functions = append(s.Functions, sig)
	}
	return s, nil
}

// parseSignature reads "1,255)".
func parseSignature(name, limits string) (FunctionSig, error) {
	low, high, ok := strings.Cut(strings.TrimSuffix(limits, ")"), ",")
	if !ok || !strings.HasSuffix(limits, ")") {
		return FunctionSig{}, fmt.Errorf("want name(min,max)")
	}
	sig := FunctionSig{Name: name, Max: -1}
	var err error
	if sig.Min, err = strconv.Atoi(strings.TrimSpace(low)); err != nil {
		return FunctionSig{}, err
	}
	if high = strings.TrimSpace(high); high != "MAX" {
		if sig.Max, err = strconv.Atoi(high); err != nil {
			return FunctionSig{}, err
		}
	}
	return sig, nil
}

// maxErrors is how many errors Check returns at most: each repeats the whole expression, as GitHub's do.
const maxErrors = 20

// Check returns an error of kind Parsing for each context and function that s does not allow, the first 20 in the order
// of the text. A nil Scope is the zero one.
func (e *Expr) Check(s *Scope) []*Error {
	if s == nil {
		s = &Scope{}
	}
	var errs []*Error
	for i := range e.refs {
		if len(errs) == maxErrors {
			break
		}
		if err := e.refs[i].check(s); err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// Check returns the errors of all expressions, the first 20 in the order of the text.
func (t *Template) Check(s *Scope) []*Error {
	var errs []*Error
	for _, e := range t.Exprs() {
		if errs = append(errs, e.Check(s)...); len(errs) >= maxErrors {
			return errs[:maxErrors]
		}
	}
	return errs
}

func (r *ref) check(s *Scope) *Error {
	if r.isContext() {
		if slices.ContainsFunc(s.Contexts, func(name string) bool { return strings.EqualFold(name, r.name) }) {
			return nil
		}
		return r.unknown()
	}
	for i := range s.Functions {
		if f := &s.Functions[i]; strings.EqualFold(f.Name, r.name) {
			return r.checkArity(f)
		}
	}
	return r.unknown()
}

func (r *ref) checkArity(f *FunctionSig) *Error {
	if what := f.mismatch(r.args); what != "" {
		return r.src.symbol(Parsing, what, r.name, r.at)
	}
	return nil
}

func (r *ref) unknown() *Error {
	what := "Unrecognized function"
	if r.isContext() {
		what = "Unrecognized named-value"
	}
	return r.src.symbol(Parsing, what, r.name, r.at)
}

// checkEnv returns an error for the first context or function that env does not have.
func (e *Expr) checkEnv(env *Env) *Error {
	for i := range e.refs {
		r := &e.refs[i]
		if r.isContext() {
			if !env.Contexts.Has(r.name) {
				return r.unknown()
			}
			continue
		}
		f, ok := env.Functions[strings.ToLower(r.name)]
		if !ok {
			return r.unknown()
		}
		if err := r.checkArity(&FunctionSig{Name: r.name, Min: f.Min, Max: f.Max}); err != nil {
			return err
		}
	}
	return nil
}
