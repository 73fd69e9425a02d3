package workflow

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// kind is what a node of a document is after the scalars of YAML 1.2's core schema were told apart.
type kind uint8

const (
	kindNull kind = iota
	kindBool
	kindNumber
	kindString
	kindSeq
	kindMap
)

// node is a node of a document with its place. An alias is the node of its anchor: nodes are shared and not changed
// once the document has been checked.
type node struct {
	kind      kind
	bool      bool
	number    float64
	line, col int
	text      string  // of a scalar, as GitHub would print it in a string
	items     []*node // of a sequence
	pairs     []pair  // of a mapping
	plain     bool    // a scalar without quotes
	cond      string  // of an if: its normalised source, once checked
	bad       bool    // a problem was reported; what is built from it is of no use
}

type pair struct{ key, value *node }

func (n *node) pos() Pos { return Pos{Line: n.line, Column: n.col} }

// scalar reports whether n is neither a sequence nor a mapping.
func (n *node) scalar() bool { return n.kind < kindSeq }

// get returns the value of a mapping's key, or nil.
func (n *node) get(key string) *node {
	if n == nil {
		return nil
	}
	for i := range n.pairs {
		if n.pairs[i].key.text == key {
			return n.pairs[i].value
		}
	}
	return nil
}

// key returns the key of that name of a mapping that has it.
func (n *node) key(name string) *node {
	i := slices.IndexFunc(n.pairs, func(p pair) bool { return p.key.text == name })
	return n.pairs[i].key
}

// dynamic reports whether there is an expression in n or below it.
func (n *node) dynamic() bool {
	return isExpression(n) || slices.ContainsFunc(n.items, (*node).dynamic) ||
		slices.ContainsFunc(n.pairs, func(p pair) bool { return p.key.dynamic() || p.value.dynamic() })
}

// byteOrderMark may begin a file.
const byteOrderMark = "\xef\xbb\xbf"

// document turns what the YAML parser read into nodes, within the limits.
type document struct {
	limits  Limits
	anchors map[*yaml.Node]measured
	open    map[*yaml.Node]bool
	err     *Problem
	nodes   []node // room for the next ones: they are made by the dozen
}

func (d *document) node(n *yaml.Node) *node {
	if len(d.nodes) == cap(d.nodes) {
		d.nodes = make([]node, 0, 32)
	}
	d.nodes = append(d.nodes, node{line: n.Line, col: n.Column})
	return &d.nodes[len(d.nodes)-1]
}

// measured is a node with what it costs once its aliases are expanded.
type measured struct {
	node  *node
	size  int
	depth int
}

// parseYAML reads one YAML document. It returns nil and one problem if that is not possible; an empty document is
// a null node.
func parseYAML(src []byte, limits Limits) (*node, *Problem) {
	if len(src) > limits.Bytes {
		return nil, &Problem{Rule: "limit", Line: 1, Column: 1, Message: fmt.Sprintf("the file is too large: %d bytes, at most %d are read", len(src), limits.Bytes)}
	}
	src = bytes.TrimPrefix(src, []byte(byteOrderMark))
	if !utf8.Valid(src) {
		line, col := placeOf(src, invalidByte(src))
		return nil, &Problem{Rule: "yaml", Line: line, Column: col, Message: "the file is not UTF-8"}
	}
	if len(bytes.TrimSpace(src)) == 0 {
		return nil, &Problem{Rule: "yaml", Line: 1, Column: 1, Message: "the file is empty"}
	}
	if crowded(src, limits.Nodes) {
		return nil, &Problem{Rule: "limit", Line: 1, Column: 1, Message: fmt.Sprintf("the file holds more than %d nodes", limits.Nodes)}
	}
	var doc yaml.Node
	err := yaml.Load(src, &doc, yaml.WithV4Defaults(), yaml.WithUniqueKeys(false), yaml.WithPlugin(&guard{limits: limits}))
	if err != nil {
		return nil, yamlProblem(err, src)
	}
	root := &doc
	if root.Kind == yaml.DocumentNode {
		if len(root.Content) == 0 {
			return &node{line: 1, col: 1}, nil
		}
		root = root.Content[0]
	}
	if root.Kind == 0 {
		return &node{line: 1, col: 1}, nil
	}
	d := &document{limits: limits}
	m := d.convert(root, 1)
	if d.err != nil {
		return nil, d.err
	}
	return m.node, nil
}

// guard stops the YAML parser before it recurses too deeply, or has opened more collections than there may be nodes.
type guard struct {
	limits Limits
	opened int
}

// CheckDepth is called by the parser for each collection that is opened.
func (g *guard) CheckDepth(depth int, _ *yaml.DepthContext) error {
	if depth > g.limits.Depth {
		return fmt.Errorf("nested more than %d levels deep", g.limits.Depth)
	}
	if g.opened++; g.opened > g.limits.Nodes {
		return fmt.Errorf("the file holds more than %d nodes", g.limits.Nodes)
	}
	return nil
}

// CheckAlias accepts: aliases are counted by document.convert, as they expand.
func (g *guard) CheckAlias(_, _ int) error { return nil }

func yamlProblem(err error, src []byte) *Problem {
	p := &Problem{Rule: "yaml", Line: 1, Column: 1, Message: "not valid YAML: " + err.Error()}
	var le *yaml.LoadError
	if errors.As(err, &le) {
		p.Message = "not valid YAML: " + le.Message
		if le.ContextMsg != "" {
			p.Message += " " + le.ContextMsg
		}
		if le.Mark.Line > 0 {
			p.Line, p.Column = le.Mark.Line, max(le.Mark.Column, 1)
		}
	}
	if lines := bytes.Count(src, []byte{'\n'}) + 1; p.Line > lines {
		p.Line, p.Column = lines, 1
	}
	return p
}

func (d *document) fail(n *yaml.Node, rule, format string, args ...any) measured {
	if d.err == nil {
		d.err = &Problem{Rule: rule, Line: n.Line, Column: n.Column, Message: fmt.Sprintf(format, args...)}
	}
	return measured{node: d.node(n), size: 1, depth: 1}
}

// convert makes a node of n and counts what it costs. Costs of an anchor are remembered, so that a document is
// walked once however often its aliases repeat.
func (d *document) convert(n *yaml.Node, depth int) measured {
	if d.err != nil {
		return measured{node: d.node(n)}
	}
	if depth > d.limits.Depth {
		return d.fail(n, "limit", "nested more than %d levels deep", d.limits.Depth)
	}
	switch n.Kind {
	case yaml.AliasNode:
		return d.alias(n, depth)
	case yaml.ScalarNode:
		s := d.node(n)
		if err := s.setScalar(n); err != nil {
			return d.fail(n, "yaml", "%v", err)
		}
		return d.remember(n, measured{node: s, size: 1, depth: 1})
	case yaml.SequenceNode, yaml.MappingNode:
		return d.remember(n, d.collection(n, depth))
	}
	return d.fail(n, "yaml", "a scalar, a sequence or a mapping was expected")
}

func (d *document) remember(n *yaml.Node, m measured) measured {
	if n.Anchor != "" {
		if d.anchors == nil {
			d.anchors = map[*yaml.Node]measured{}
		}
		d.anchors[n] = m
	}
	return m
}

func (d *document) alias(n *yaml.Node, depth int) measured {
	if d.open[n.Alias] {
		return d.fail(n, "yaml", "the anchor '%s' contains itself", n.Value)
	}
	m, ok := d.anchors[n.Alias]
	if !ok {
		return d.fail(n, "yaml", "the anchor '%s' is not defined before it is used", n.Value)
	}
	if depth+m.depth-1 > d.limits.Depth {
		return d.fail(n, "limit", "nested more than %d levels deep with the alias '%s' expanded", d.limits.Depth, n.Value)
	}
	return m
}

func (d *document) collection(n *yaml.Node, depth int) measured {
	if n.Anchor != "" {
		if d.open == nil {
			d.open = map[*yaml.Node]bool{}
		}
		d.open[n] = true
		defer delete(d.open, n)
	}
	out := d.node(n)
	out.kind = kindSeq
	m := measured{node: out, size: 1, depth: 1}
	add := func(c *yaml.Node) *node {
		cm := d.convert(c, depth+1)
		m.size += cm.size
		m.depth = max(m.depth, cm.depth+1)
		if m.size > d.limits.Nodes {
			d.fail(c, "limit", "the file holds more than %d nodes with its aliases expanded", d.limits.Nodes)
		}
		return cm.node
	}
	if n.Kind == yaml.SequenceNode {
		out.items = make([]*node, 0, len(n.Content))
		for _, c := range n.Content {
			out.items = append(out.items, add(c))
		}
		return m
	}
	out.kind = kindMap
	out.pairs = make([]pair, 0, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := add(n.Content[i])
		if d.err == nil && !key.scalar() {
			d.fail(n.Content[i], "yaml", "a key must be a scalar")
		}
		out.pairs = append(out.pairs, pair{key, add(n.Content[i+1])})
	}
	return m
}

func invalidByte(src []byte) int {
	for i := 0; i < len(src); {
		r, size := utf8.DecodeRune(src[i:])
		if r == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return len(src)
}

func placeOf(src []byte, offset int) (line, col int) {
	before := src[:offset]
	start := bytes.LastIndexByte(before, '\n') + 1
	return bytes.Count(before, []byte{'\n'}) + 1, utf8.RuneCount(before[start:]) + 1
}
