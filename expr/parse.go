package expr

import "strconv"

// maxDepth is how deep an expression may nest, counted as GitHub's parser does: groups, calls, indexes, ! and chains.
const maxDepth = 50

// parser is a recursive descent over the tokens of one expression. From loose to tight: ||, &&, == and !=,
// the four orders, !, then names with their indexes. Depth is bounded, hence so is the recursion.
type parser struct {
	src    *source
	tokens []token
	pos    int
	depth  int
	refs   []ref
}

// parse returns the expression that the tokens make; none make null.
func (p *parser) parse() (node, *Error) {
	if p.peek().kind == tokEnd {
		return &literalNode{at: p.src.base}, nil
	}
	n, err := p.expression()
	if err == nil && p.peek().kind != tokEnd {
		err = p.unexpected()
	}
	return n, err
}

func (p *parser) peek() *token { return &p.tokens[p.pos] }

// accept takes the next token if it is of the given kind.
func (p *parser) accept(kind tokenKind) bool {
	if p.tokens[p.pos].kind != kind || kind == tokEnd {
		return false
	}
	p.pos++
	return true
}

// last returns the token taken most recently.
func (p *parser) last() *token { return &p.tokens[p.pos-1] }

// at returns the offset of t in the caller's text.
func (p *parser) at(t *token) int { return p.src.base + t.start }

// fail returns an error about t.
func (p *parser) fail(what string, t *token) *Error {
	return p.src.symbol(Parsing, what, p.src.text[t.start:t.end], p.at(t))
}

// unexpected returns an error about the next token. At the end of the text it points to the last word.
func (p *parser) unexpected() *Error {
	if t := p.peek(); t.kind != tokEnd {
		return p.fail("Unexpected symbol", t)
	}
	return p.fail("Unexpected end of expression", &p.tokens[max(p.pos-1, 0)])
}

// enter goes one level deeper; the caller leaves it by decreasing p.depth.
func (p *parser) enter() *Error {
	p.depth++
	if p.depth > maxDepth {
		return p.fail("Exceeded max expression depth "+strconv.Itoa(maxDepth), p.peek())
	}
	return nil
}

func (p *parser) expression() (node, *Error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer func() { p.depth-- }()
	return p.chain(tokOr)
}

// chain reads operands with op, || or &&, between them.
func (p *parser) chain(op tokenKind) (node, *Error) {
	first, err := p.operand(op)
	if err != nil || p.peek().kind != op {
		return first, err
	}
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer func() { p.depth-- }()
	chain := &logicNode{at: p.at(p.peek()), op: op, args: []node{first}}
	for p.accept(op) {
		n, err := p.operand(op)
		if err != nil {
			return nil, err
		}
		chain.args = append(chain.args, n)
	}
	return chain, nil
}

// operand reads an operand of || or of &&.
func (p *parser) operand(op tokenKind) (node, *Error) {
	if op == tokOr {
		return p.chain(tokAnd)
	}
	return p.equality()
}

func (p *parser) equality() (node, *Error) {
	x, err := p.order()
	for err == nil && (p.accept(tokEqual) || p.accept(tokNotEqual)) {
		n := &compareNode{at: p.at(p.last()), op: p.last().kind, x: x}
		n.y, err = p.order()
		x = n
	}
	return x, err
}

func (p *parser) order() (node, *Error) {
	x, err := p.unary()
	for err == nil && (p.accept(tokLess) || p.accept(tokLessEqual) || p.accept(tokGreater) || p.accept(tokGreaterEqual)) {
		n := &compareNode{at: p.at(p.last()), op: p.last().kind, x: x}
		n.y, err = p.unary()
		x = n
	}
	return x, err
}

func (p *parser) unary() (node, *Error) {
	if !p.accept(tokNot) {
		return p.postfix()
	}
	n := &notNode{at: p.at(p.last())}
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer func() { p.depth-- }()
	var err *Error
	n.x, err = p.unary()
	return n, err
}

// postfix reads a value and the indexes after it; literals have none.
func (p *parser) postfix() (node, *Error) {
	literal := p.peek().kind == tokLiteral
	x, err := p.primary()
	depth := p.depth
	defer func() { p.depth = depth }()
	for err == nil && !literal {
		n := &indexNode{at: p.at(p.peek()), x: x}
		switch {
		case p.accept(tokDot):
			err = p.property(n)
		case p.accept(tokLeftBracket):
			err = p.index(n)
		default:
			return x, nil
		}
		x = n
	}
	return x, err
}

// property reads what follows a point into n.key.
func (p *parser) property(n *indexNode) *Error {
	if err := p.enter(); err != nil {
		return err
	}
	switch {
	case p.accept(tokName):
		t := p.last()
		n.key = &literalNode{at: p.at(t), value: Str(p.src.text[t.start:t.end])}
		return nil
	case p.accept(tokStar):
		return nil
	default:
		return p.unexpected()
	}
}

// index reads what follows an opening bracket, and the closing one, into n.key.
func (p *parser) index(n *indexNode) *Error {
	if !p.accept(tokStar) {
		var err *Error
		if n.key, err = p.expression(); err != nil {
			return err
		}
	}
	if !p.accept(tokRightBracket) {
		return p.unexpected()
	}
	return p.enter()
}

// primary reads a literal, a group, a context or a call.
func (p *parser) primary() (node, *Error) {
	switch t := p.peek(); t.kind {
	case tokLiteral:
		p.pos++
		return &literalNode{at: p.at(t), value: t.value}, nil
	case tokName:
		p.pos++
		name := p.src.text[t.start:t.end]
		if p.accept(tokLeftParen) {
			return p.call(t, name)
		}
		p.refs = append(p.refs, ref{src: p.src, at: p.at(t), name: name, args: -1})
		return &contextNode{at: p.at(t), name: name}, nil
	case tokLeftParen:
		p.pos++
		n, err := p.expression()
		if err == nil && !p.accept(tokRightParen) {
			err = p.unexpected()
		}
		return n, err
	default:
		return nil, p.unexpected()
	}
}

// call reads the arguments of a function. A comma after the last one is ignored, as GitHub's parser does.
func (p *parser) call(t *token, name string) (node, *Error) {
	n := &callNode{at: p.at(t), name: name, builtin: lookup(name)}
	place := len(p.refs)
	if n.builtin == nil {
		p.refs = append(p.refs, ref{src: p.src, at: p.at(t), name: name})
	}
	for !p.accept(tokRightParen) {
		arg, err := p.expression()
		if err != nil {
			return nil, err
		}
		n.args = append(n.args, arg)
		if p.peek().kind != tokRightParen && !p.accept(tokComma) {
			return nil, p.unexpected()
		}
	}
	if what := n.mismatch(); what != "" {
		return nil, p.fail(what, t)
	}
	if n.builtin == nil {
		p.refs[place].args = len(n.args)
	}
	return n, nil
}
