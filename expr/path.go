package expr

// Paths returns what the expression reads of each context that it mentions, as far as it is written down: github.event['x']
// is github, event, x; steps.a[0].b and steps.*.b end before what is no name.
func (e *Expr) Paths() [][]string {
	var paths [][]string
	pathsOf(e.root, &paths)
	return paths
}

// pathsOf adds the paths in and below n.
func pathsOf(n node, out *[][]string) {
	switch n := n.(type) {
	case *contextNode:
		*out = append(*out, []string{n.name})
	case *indexNode:
		if path := pathOf(n); path != nil {
			*out = append(*out, path)
		} else {
			pathsOf(n.x, out)
		}
		if n.key != nil {
			pathsOf(n.key, out)
		}
	case *notNode:
		pathsOf(n.x, out)
	case *compareNode:
		pathsOf(n.x, out)
		pathsOf(n.y, out)
	case *logicNode:
		for _, a := range n.args {
			pathsOf(a, out)
		}
	case *callNode:
		for _, a := range n.args {
			pathsOf(a, out)
		}
	}
}

// pathOf is the path of a context and the names that follow it, or nil if there is something else among them.
func pathOf(n node) []string {
	switch n := n.(type) {
	case *contextNode:
		return []string{n.name}
	case *indexNode:
		key, ok := n.key.(*literalNode)
		if above := pathOf(n.x); ok && above != nil && key.value.Kind() == KindString {
			return append(above, key.value.Text())
		}
	}
	return nil
}
