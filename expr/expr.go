// Package expr is the expression language of GitHub Actions, `${{ }}`: lexer, parser, static check and evaluator.
// It knows nothing of CI: contexts and functions come from the caller.
//
// Parse reads one expression, ParseTemplate a text with ${{ }} in it, ParseCondition an `if`. What they return is
// immutable: check it against a Scope, and evaluate it in as many Envs as need be.
//
// GitHub has two implementations. Where they give different values, that of its runner decides, for it is what users see;
// differential_test.go and testdata/differential.mjs list the differences from the other one, in TypeScript. Where
// only the TypeScript one gives sense to a text, so do we: numbers such as 0b11, 0XFF and 0xffffffff, and a
// comma after the last argument of a call.
//
// https://docs.github.com/en/actions/reference/workflows-and-actions/expressions
package expr

import (
	"slices"
	"strings"
)

// Expr is a parsed expression. It is immutable and safe for concurrent use.
type Expr struct {
	src  *source
	text string // see Source
	root node
	refs []ref // in the order of the text
}

// Parse reads an expression, without ${{ }}. The empty expression is null.
// The error is an *Error of kind Lexing or Parsing. Names are not resolved: see Check and Eval.
func Parse(src string) (*Expr, error) {
	s := &source{src: src}
	s.text = trimSpace(src)
	s.base = strings.Index(src, s.text)
	e, err := parseSource(s)
	if err != nil {
		return nil, err
	}
	return e, nil
}

// parseSource parses s.text.
func parseSource(s *source) (*Expr, *Error) {
	tokens, err := lex(s)
	if err != nil {
		return nil, err
	}
	p := &parser{src: s, tokens: tokens}
	root, err := p.parse()
	if err != nil {
		return nil, err
	}
	return &Expr{src: s, text: s.text, root: root, refs: p.refs}, nil
}

func trimSpace(s string) string { return strings.TrimFunc(s, isSpace) }

// Source returns the text of the expression without the white space around it.
// For a condition it is the whole of it, with what ParseCondition added.
func (e *Expr) Source() string { return e.text }

// Calls tells whether one of the named functions is called somewhere in the expression. Names have no case.
func (e *Expr) Calls(names ...string) bool {
	return callsAny(e.root, names)
}

func callsAny(n node, names []string) bool {
	switch n := n.(type) {
	case *indexNode:
		return callsAny(n.x, names) || n.key != nil && callsAny(n.key, names)
	case *notNode:
		return callsAny(n.x, names)
	case *compareNode:
		return callsAny(n.x, names) || callsAny(n.y, names)
	case *logicNode:
		return slices.ContainsFunc(n.args, func(a node) bool { return callsAny(a, names) })
	case *callNode:
		return slices.ContainsFunc(names, func(name string) bool { return strings.EqualFold(name, n.name) }) ||
			slices.ContainsFunc(n.args, func(a node) bool { return callsAny(a, names) })
	default:
		return false
	}
}

// Contexts returns the names of the contexts that the expression mentions, each once, as first written.
func (e *Expr) Contexts() []string {
	var names []string
	for i := range e.refs {
		r := &e.refs[i]
		if r.isContext() && !slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, r.name) }) {
			names = append(names, r.name)
		}
	}
	return names
}
