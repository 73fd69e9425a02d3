package workflow

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/terraphim/tgr/expr"
)

// maxProblems bounds how many problems are collected for one file, maxExcerptColumn where an excerpt is still made, and
// maxQuoted the bytes of the file that a message repeats.
const (
	maxProblems      = 500
	maxExcerptColumn = 2000
	maxQuoted        = 1000
)

// reader checks a document against the grammar and collects problems. One reader serves one file.
type reader struct {
	file     string
	src      []byte
	lines    []int // offsets of the lines, filled when the first excerpt is made
	problems []Problem
	scopes   map[allow]*expr.Scope
	seen     map[Pos]bool           // places that have an error
	exprs    map[*node][]*expr.Expr // that may stand where they do, for references
}

func newReader(file string, src []byte) *reader {
	src = bytes.TrimPrefix(src, []byte(byteOrderMark))
	return &reader{file: file, src: src, scopes: map[allow]*expr.Scope{}, seen: map[Pos]bool{}, exprs: map[*node][]*expr.Expr{}}
}

// errorf reports an error at a node.
func (r *reader) errorf(n *node, rule, format string, args ...any) {
	n.bad = true
	r.report(n.pos(), SeverityError, rule, message(format, args))
}

// follow reports an error unless another one was already reported at that place: it would be its consequence.
func (r *reader) follow(at Pos, rule, format string, args ...any) {
	if !r.seen[at] {
		r.report(at, SeverityError, rule, message(format, args))
	}
}

func (r *reader) warnf(at Pos, rule, format string, args ...any) {
	r.report(at, SeverityWarning, rule, message(format, args))
}

// message formats a message with the beginnings of long texts.
func message(format string, args []any) string {
	for i, a := range args {
		if s, ok := a.(string); ok && len(s) > maxQuoted {
			args[i] = strings.ToValidUTF8(s[:maxQuoted], "") + "…"
		}
	}
	return fmt.Sprintf(format, args...)
}

func (r *reader) report(at Pos, sev Severity, rule, message string) {
	if len(r.problems) == maxProblems {
		r.problems = append(r.problems, Problem{File: r.file, Line: at.Line, Column: at.Column, Rule: "limit", Message: fmt.Sprintf("more than %d problems; the rest is not shown", maxProblems)})
	}
	if r.full() {
		return
	}
	if sev == SeverityError {
		r.seen[at] = true
	}
	r.problems = append(r.problems, Problem{
		File: r.file, Line: at.Line, Column: at.Column, Severity: sev, Rule: rule, Message: message,
		Excerpt: r.excerpt(at),
	})
}

// full reports whether so many problems were found that looking for more is of no use.
func (r *reader) full() bool { return len(r.problems) > maxProblems }

// done returns the problems in the file's order.
func (r *reader) done() []Problem {
	slices.SortStableFunc(r.problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Severity, b.Severity))
	})
	return r.problems
}

func (r *reader) excerpt(at Pos) string {
	if at.Line == 0 || at.Column > maxExcerptColumn {
		return ""
	}
	if r.lines == nil {
		r.lines = []int{0}
		for i, c := range r.src {
			if c == '\n' {
				r.lines = append(r.lines, i+1)
			}
		}
	}
	if at.Line > len(r.lines) {
		return ""
	}
	start, end := r.lines[at.Line-1], len(r.src)
	if at.Line < len(r.lines) {
		end = r.lines[at.Line]
	}
	line := string(r.src[start:min(end, start+4*(maxExcerptColumn+200))])
	if strings.TrimSpace(line) == "" {
		return ""
	}
	return caret(line, at.Column)
}

// read checks n and all below it.
func (r *reader) read(n *node, s *shape, above allow) {
	if r.full() {
		return
	}
	allowed := above | s.allow
	switch n.kind {
	case kindSeq:
		if s.item == nil {
			r.errorf(n, "unexpected-value", "a sequence was not expected; expected %s", s.name)
			return
		}
		for _, item := range n.items {
			r.read(item, s.item, allowed)
		}
	case kindMap:
		r.mapping(n, s, allowed)
	default:
		r.scalar(n, s, allowed)
	}
}

func (r *reader) mapping(n *node, s *shape, allowed allow) {
	if len(s.maps) == 0 {
		r.errorf(n, "unexpected-value", "a mapping was not expected; expected %s", s.name)
		return
	}
	forms := s.maps
	keys := keySet{}
	dynamic := false
	for i := range n.pairs {
		key, value := n.pairs[i].key, n.pairs[i].value
		if isExpression(key) {
			r.expressionKey(key, allowed)
			dynamic = true
			r.read(value, valueBelow(forms), allowed)
			continue
		}
		if r.mergeKey(key, value) {
			continue
		}
		if !keys.add(key.text) {
			r.errorf(key, "duplicate", "'%s' is already defined", key.text)
			value.bad = true
			continue
		}
		var p *prop
		forms, p = narrow(forms, key.text)
		switch {
		case p != nil:
			r.read(value, p.shape, allowed)
		case forms[0].loose != nil:
			if key.text == "" {
				r.errorf(key, "unexpected-key", "a key must not be empty")
			}
			r.read(value, forms[0].loose, allowed)
		case forms[0].ignore:
			r.warnf(key.pos(), "unexpected-key", "unexpected value '%s'%s", key.text, hint(key.text, forms))
		default:
			r.errorf(key, "unexpected-key", "unexpected value '%s'%s", key.text, hint(key.text, forms))
		}
	}
	r.complete(n, forms, keys, dynamic)
}

// complete checks that a mapping has the keys it needs.
func (r *reader) complete(n *node, forms []*mapping, keys keySet, dynamic bool) {
	if len(forms) > 1 {
		r.errorf(n, "required", "there is not enough info to determine what you meant; add one of these keys: %s", list(distinct(forms)))
		return
	}
	if dynamic {
		return
	}
	for _, p := range forms[0].props {
		if p.required && !keys.has(p.name) {
			r.errorf(n, "required", "required key is missing: '%s'", p.name)
		}
	}
}

// expressionKey checks a key with ${{ }} in it, which may stand for any key.
func (r *reader) expressionKey(key *node, allowed allow) {
	if allowed == 0 {
		r.errorf(key, "expression", "an expression is not allowed here")
	} else if !isInsert(key.text) {
		r.template(key, allowed)
	}
}

// mergeKey refuses a YAML merge key, which GitHub does not know.
func (r *reader) mergeKey(key, value *node) bool {
	if key.text != "<<" || !key.plain || value.kind < kindSeq {
		return false
	}
	r.errorf(key, "merge-key", "unexpected value '<<': YAML merge keys are not supported; repeat the keys, or use an alias for the whole value")
	return true
}

// narrow keeps the forms that have the key, if one has it.
func narrow(forms []*mapping, key string) ([]*mapping, *prop) {
	var found *prop
	missing := false
	for _, f := range forms {
		if p := f.prop(key); p == nil {
			missing = true
		} else if found == nil {
			found = p
		}
	}
	if found == nil || !missing {
		return forms, found
	}
	var kept []*mapping
	for _, f := range forms {
		if f.prop(key) != nil {
			kept = append(kept, f)
		}
	}
	return kept, found
}

// valueBelow is what the value of a key with an expression may be.
func valueBelow(forms []*mapping) *shape {
	if f := forms[0]; f.loose != nil && len(f.props) == 0 {
		s := *f.loose
		s.maps = anything().maps // ${{ insert }} takes a mapping
		return &s
	}
	return anything()
}

// distinct are the keys that only one of the forms has.
func distinct(forms []*mapping) []string {
	count := map[string]int{}
	for _, f := range forms {
		for _, p := range f.props {
			count[p.name]++
		}
	}
	var out []string
	for name, n := range count {
		if n == 1 {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// keySet remembers the keys of a mapping without regard to case.
type keySet map[string]struct{}

func (k keySet) add(key string) bool {
	if key == "" {
		return true
	}
	key = strings.ToUpper(key)
	if _, ok := k[key]; ok {
		return false
	}
	k[key] = struct{}{}
	return true
}

func (k keySet) has(key string) bool {
	_, ok := k[strings.ToUpper(key)]
	return ok
}

// scalar checks a scalar. One that is not a string counts as the string it prints as where a string is expected.
func (r *reader) scalar(n *node, s *shape, allowed allow) {
	if s.cond {
		r.condition(n, allowed)
		return
	}
	if n.kind == kindString && strings.Contains(n.text, "${{") {
		if text, ok := quotedText(n.text); ok {
			n.text = text
			r.scalar(n, s, allowed)
			return
		}
		if allowed == 0 {
			r.errorf(n, "expression", "an expression is not allowed here; expected %s", s.name)
			return
		}
		r.template(n, allowed)
		return
	}
	switch {
	case n.kind == kindNull && s.null, n.kind == kindBool && s.boolean, n.kind == kindNumber && s.number:
		return
	}
	switch s.text {
	case anyText:
		return
	case nonEmpty:
		if n.text != "" {
			return
		}
	case oneOf:
		if slices.Contains(s.words, n.text) {
			return
		}
		tip := similar(n.text, s.words)
		if tip == "" {
			tip = "; expected " + s.name
		}
		if n.text != "" && (s.lenient || n.text == s.old) {
			r.warnf(n.pos(), "unexpected-value", "unexpected value '%s'%s", n.text, tip)
		} else {
			r.errorf(n, "unexpected-value", "unexpected value '%s'%s", n.text, tip)
		}
		return
	}
	r.errorf(n, "unexpected-value", "unexpected value '%s'; expected %s", n.text, s.name)
}

// template parses and checks a string with ${{ }} in it.
func (r *reader) template(n *node, allowed allow) {
	t, err := expr.ParseTemplate(n.text)
	if err != nil {
		r.expressionError(n, err, allowed)
		return
	}
	wrong := t.Check(r.scope(allowed))
	for _, e := range wrong {
		r.expressionError(n, e, allowed)
	}
	if len(wrong) == 0 {
		r.exprs[n] = t.Exprs()
	}
}

// quotedText is the text of a string that is nothing but ${{ '…' }}: GitHub reads such a string as if the text alone had been
// written, also where no expressions are allowed, and reads a condition's text as an expression then.
func quotedText(s string) (string, bool) {
	inner, opened := strings.CutPrefix(s, "${{")
	inner, closed := strings.CutSuffix(inner, "}}")
	inner = strings.TrimSpace(inner)
	if !opened || !closed || len(inner) < 2 || inner[0] != '\'' || inner[len(inner)-1] != '\'' {
		return "", false
	}
	inner = inner[1 : len(inner)-1]
	text := strings.ReplaceAll(inner, "''", "'")
	if strings.Count(text, "'")*2 != strings.Count(inner, "'") || strings.Contains(text, "${{") {
		return "", false
	}
	return text, true
}

func (r *reader) condition(n *node, allowed allow) {
	if text, ok := quotedText(n.text); ok {
		n.text = text
	}
	e, err := expr.ParseCondition(n.text)
	if err != nil {
		r.expressionError(n, err, allowed)
		return
	}
	n.cond = e.Source()
	wrong := e.Check(r.scope(allowed))
	for _, e := range wrong {
		r.expressionError(n, e, allowed)
	}
	if len(wrong) == 0 {
		r.exprs[n] = []*expr.Expr{e}
	}
}

// expressionError reports what is wrong with an expression, with what may help.
func (r *reader) expressionError(n *node, err error, allowed allow) {
	tip := ""
	if e := (*expr.Error)(nil); errors.As(err, &e) && !r.full() {
		tip = advice(e, allowed)
	}
	r.errorf(n, "expression", "%v%s", err, tip)
}

func (r *reader) scope(a allow) *expr.Scope {
	s := r.scopes[a]
	if s == nil {
		s = a.scope()
		r.scopes[a] = s
	}
	return s
}

func isExpression(n *node) bool { return n.kind == kindString && strings.Contains(n.text, "${{") }

// isInsert reports whether a key is the directive that puts the keys of an object in its place.
func isInsert(key string) bool {
	inner, ok := strings.CutPrefix(strings.TrimSpace(key), "${{")
	if !ok {
		return false
	}
	inner, ok = strings.CutSuffix(inner, "}}")
	return ok && strings.TrimSpace(inner) == "insert"
}
