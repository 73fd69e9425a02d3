package expr

// node is a part of a parsed expression. Offsets count bytes from the start of the text that was given to Parse,
// ParseTemplate or ParseCondition.
type node interface {
	// offset is where the errors of the node point to.
	offset() int
}

// literalNode is a number, a string, true, false or null.
type literalNode struct {
	at    int
	value Value
}

// contextNode is a name that stands for itself: github, matrix, …
type contextNode struct {
	at   int
	name string
}

// indexNode is x.key or x[key]; a nil key is the object filter, x.* or x[*].
type indexNode struct {
	at     int // of the point or the bracket
	x, key node
}

// callNode is a call of a function. builtin is nil for one that only the caller of Eval knows.
type callNode struct {
	at      int
	name    string // as written
	builtin *builtin
	args    []node
}

// notNode is !x.
type notNode struct {
	at int
	x  node
}

// compareNode is one of == != < <= > >= between two values.
type compareNode struct {
	at   int // of the operator
	op   tokenKind
	x, y node
}

// logicNode is a chain of && or of ||.
type logicNode struct {
	at   int // of the first operator
	op   tokenKind
	args []node
}

func (n *literalNode) offset() int { return n.at }
func (n *contextNode) offset() int { return n.at }
func (n *indexNode) offset() int   { return n.at }
func (n *callNode) offset() int    { return n.at }
func (n *notNode) offset() int     { return n.at }
func (n *compareNode) offset() int { return n.at }
func (n *logicNode) offset() int   { return n.at }

// ref is a mention of a context or of a function that is not built in: what an expression needs from outside.
type ref struct {
	src  *source
	at   int
	name string
	args int // of a function; -1 for a context
}

func (r *ref) isContext() bool { return r.args < 0 }
