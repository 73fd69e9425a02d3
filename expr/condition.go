package expr

import (
	"strconv"
	"strings"
)

// ParseCondition reads an `if`. It may be an expression with or without ${{ }}; nothing at all means success().
// Unless the expression calls success, failure, always or cancelled, it counts only after success: GitHub
// reads x as success() && (x), and so does Source. A text with ${{ }} amid other words is, as there, a string,
// which is true unless it is empty.
func ParseCondition(src string) (*Expr, error) {
	e, err := parseCondition(src)
	if err != nil {
		return nil, err
	}
	return e, nil
}

func parseCondition(src string) (*Expr, *Error) {
	s := &source{src: src, text: trimSpace(src)}
	s.base = strings.Index(src, s.text)
	if !strings.Contains(src, opening) {
		e, err := parseSource(s)
		if err != nil {
			return nil, err
		}
		return e.afterSuccess(), nil
	}
	t, err := parseTemplate(src[:s.base+len(s.text)])
	if err != nil {
		return nil, err
	}
	return t.trimLeft(s.base).asExpr(s).afterSuccess(), nil
}

// trimLeft drops the first n bytes of a template, which are white space.
func (t *Template) trimLeft(n int) *Template {
	if n > 0 {
		t.parts[0].text = t.parts[0].text[n:]
		if t.parts[0].text == "" {
			t.parts = t.parts[1:]
		}
	}
	return t
}

// asExpr returns the expression that GitHub makes of a template: its only one, or a call of format.
func (t *Template) asExpr(s *source) *Expr {
	if e, ok := t.Single(); ok {
		return e
	}
	call := &callNode{at: s.base, name: "format", builtin: lookup("format")}
	e := &Expr{src: s, root: call}
	var pattern, args strings.Builder
	call.args = []node{nil}
	for _, p := range t.parts {
		if p.expr == nil {
			pattern.WriteString(strings.NewReplacer("{", "{{", "}", "}}").Replace(p.text))
			continue
		}
		pattern.WriteString("{" + strconv.Itoa(len(call.args)-1) + "}")
		args.WriteString(", " + p.expr.text)
		call.args = append(call.args, p.expr.root)
		e.refs = append(e.refs, p.expr.refs...)
	}
	call.args[0] = &literalNode{at: s.base, value: Str(pattern.String())}
	e.text = "format('" + strings.ReplaceAll(pattern.String(), "'", "''") + "'" + args.String() + ")"
	return e
}

// afterSuccess returns e with success() && before it, unless e deals with the status itself.
func (e *Expr) afterSuccess() *Expr {
	if e.Calls("success", "failure", "always", "cancelled") {
		return e
	}
	const success = "success"
	at := e.src.base
	call := &callNode{at: at, name: success}
	out := &Expr{src: e.src, text: "success()", root: call}
	out.refs = append([]ref{{src: e.src, at: at, name: success}}, e.refs...)
	if e.text != "" {
		out.text = "success() && (" + e.text + ")"
		out.root = &logicNode{at: at, op: tokAnd, args: []node{call, e.root}}
	}
	return out
}
