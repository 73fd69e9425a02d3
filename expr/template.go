package expr

import "strings"

// Template is a text with expressions in ${{ }}. It is immutable and safe for concurrent use.
type Template struct {
	src   string
	parts []part
}

// part is a piece of a template: an expression, or where expr is nil the text between two.
type part struct {
	text string
	expr *Expr
}

// ParseTemplate reads a text in which ${{ begins an expression and the next }} outside quotes ends it.
// The error is an *Error whose place is in src.
func ParseTemplate(src string) (*Template, error) {
	t, err := parseTemplate(src)
	if err != nil {
		return nil, err
	}
	return t, nil
}

const opening, closing = "${{", "}}"

func parseTemplate(src string) (*Template, *Error) {
	t := &Template{src: src}
	for pos := 0; pos < len(src); {
		start := strings.Index(src[pos:], opening)
		if start < 0 {
			t.parts = append(t.parts, part{text: src[pos:]})
			break
		}
		if start > 0 {
			t.parts = append(t.parts, part{text: src[pos : pos+start]})
		}
		start += pos
		end := expressionEnd(src, start+len(opening))
		whole := &source{src: src}
		if end < 0 {
			return nil, whole.at(Lexing, start, "The expression is not closed. An unescaped ${{ sequence was found, but the closing }} sequence was not found.")
		}
		inner := src[start+len(opening) : end]
		text := trimSpace(inner)
		if text == "" {
			return nil, whole.at(Parsing, start, "An expression was expected")
		}
		e, err := parseSource(&source{src: src, base: start + len(opening) + strings.Index(inner, text), text: text})
		if err != nil {
			return nil, err
		}
		t.parts = append(t.parts, part{expr: e})
		pos = end + len(closing)
	}
	return t, nil
}

// expressionEnd returns the offset of the }} that ends the expression at pos, or -1.
func expressionEnd(src string, pos int) int {
	quoted := false
	for i := pos; i < len(src); i++ {
		switch {
		case src[i] == '\'':
			quoted = !quoted
		case !quoted && strings.HasPrefix(src[i:], closing):
			return i
		}
	}
	return -1
}

// Literal returns the text of a template without expressions.
func (t *Template) Literal() (string, bool) {
	for _, p := range t.parts {
		if p.expr != nil {
			return "", false
		}
	}
	return t.src, true
}

// Single returns the expression of a template that is nothing but one.
func (t *Template) Single() (*Expr, bool) {
	if len(t.parts) != 1 || t.parts[0].expr == nil {
		return nil, false
	}
	return t.parts[0].expr, true
}

// Exprs returns the expressions, in order.
func (t *Template) Exprs() []*Expr {
	var list []*Expr
	for _, p := range t.parts {
		if p.expr != nil {
			list = append(list, p.expr)
		}
	}
	return list
}

// Source returns the text as it was given to ParseTemplate.
func (t *Template) Source() string { return t.src }

// Eval computes the template. A single expression keeps its type; anything else is a String in which each expression
// is replaced by its text. One budget is for all of them. Errors are as those of Expr.Eval.
func (t *Template) Eval(env *Env) (Value, error) {
	if e, ok := t.Single(); ok {
		return e.Eval(env)
	}
	if s, ok := t.Literal(); ok {
		return Str(s), nil
	}
	if env == nil {
		env = &Env{}
	}
	for _, e := range t.Exprs() {
		if err := e.checkEnv(env); err != nil {
			return Value{}, err
		}
	}
	ev := newEvaluator(env, nil)
	var b textBuilder
	for _, p := range t.parts {
		text := p.text
		if p.expr != nil {
			ev.src = p.expr.src
			v, err := ev.eval(p.expr.root)
			if err != nil {
				return Value{}, err
			}
			text = v.Text()
		}
		b.add(ev, text)
		if b.err != nil {
			e := (&source{src: t.src}).at(Evaluation, 0, b.err.Error())
			e.Err = b.err
			return Value{}, e
		}
	}
	return Str(b.text.String()), nil
}
