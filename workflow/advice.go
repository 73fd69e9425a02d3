package workflow

import (
	"slices"
	"strings"

	"github.com/terraphim/tgr/expr"
)

// advice is what may help with an expression that names something that it cannot, or "".
func advice(e *expr.Error, allowed allow) string {
	scope := allowed.scope()
	everywhere := (^allow(0)).scope()
	functions := expr.BuiltIns()
	for _, f := range scope.Functions {
		functions = append(functions, f.Name)
	}
	isFunction := func(f expr.FunctionSig) bool { return strings.EqualFold(f.Name, e.Token) }
	switch {
	case strings.HasPrefix(e.Message, "Unrecognized named-value"):
		switch {
		case has(functions, e.Token):
			return "; it is a function: write '" + e.Token + "()'"
		case strings.EqualFold(e.Token, "secrets") && allowed&ctxEnv != 0 && allowed&ctxNeeds != 0:
			return "; secrets cannot be read here: give one to env, and ask for that"
		case strings.EqualFold(e.Token, "secrets") && allowed&ctxRunner != 0:
			return "; an action gets secrets as inputs"
		case has(everywhere.Contexts, e.Token) && len(scope.Contexts) > 0:
			return "; here there are " + list(scope.Contexts)
		}
		return near(e.Token, scope.Contexts)
	case strings.HasPrefix(e.Message, "Unrecognized function"):
		switch {
		case strings.EqualFold(e.Token, "hashFiles"):
			return "; it can be called in steps alone, where there are files"
		case slices.ContainsFunc(everywhere.Functions, isFunction):
			return "; it can be called in 'if' alone"
		}
		return near(e.Token, functions)
	case e.Token == "=":
		return "; to compare, write '=='"
	case strings.HasPrefix(e.Token, `"`):
		return "; strings have single quotes"
	case e.Token == "&" || e.Token == "|":
		return "; write '" + e.Token + e.Token + "'"
	}
	return ""
}
