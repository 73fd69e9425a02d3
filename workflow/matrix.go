package workflow

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/terraphim/tgr/expr"
)

// MaxMatrix is how many combinations a matrix may have.
const MaxMatrix = 256

// maxProduct bounds the combinations that are looked at before excludes are taken away, maxWork how often one of them is
// compared with an exclude, and maxEntries the entries of include and of exclude.
const (
	maxProduct = 1 << 16
	maxWork    = 1 << 21
	maxEntries = 1024
)

// strategy converts a job's strategy and, if its matrix holds no expression, expands it to see whether it can be.
func (r *reader) strategy(n *node) *Strategy {
	if n == nil || n.bad {
		return nil
	}
	if n.scalar() {
		return &Strategy{Expr: n.text}
	}
	s := &Strategy{FailFast: textOf(n.get("fail-fast")), MaxParallel: textOf(n.get("max-parallel"))}
	m := n.get("matrix")
	if m == nil {
		return s
	}
	var b bytes.Buffer
	dynamic := writeJSON(&b, m)
	s.Matrix = b.Bytes()
	if dynamic || broken(m) {
		return s
	}
	v, err := expr.FromJSON(s.Matrix)
	if err != nil {
		r.errorf(m, "matrix", "the matrix cannot be read: %v", err)
		return s
	}
	if _, err := expandMatrix(v); err != nil {
		r.errorf(m.at(err.path), "matrix", "%s", err.message)
	}
	return s
}

// at follows a path of keys and indexes from n as far as it goes.
func (n *node) at(path []any) *node {
	for _, step := range path {
		switch step := step.(type) {
		case string:
			for i := range n.pairs {
				if n.pairs[i].key.text == step {
					n = n.pairs[i].value
					break
				}
			}
		case int:
			if step < len(n.items) {
				n = n.items[step]
			}
		case keyOf:
			for i := range n.pairs {
				if n.pairs[i].key.text == string(step) {
					return n.pairs[i].key
				}
			}
		}
	}
	return n
}

// keyOf is a path's last step where the key itself is meant.
type keyOf string

// writeJSON writes a node as JSON in the file's order and reports whether there are expressions in it. Numbers that
// JSON lacks become expressions.
func writeJSON(b *bytes.Buffer, n *node) (dynamic bool) {
	switch n.kind {
	case kindNull:
		b.WriteString("null")
	case kindBool:
		b.WriteString(strconv.FormatBool(n.bool))
	case kindNumber:
		if math.IsInf(n.number, 0) || math.IsNaN(n.number) {
			b.WriteString(`"${{ ` + n.text + ` }}"`)
			return true
		}
		b.WriteString(strconv.FormatFloat(n.number, 'g', -1, 64))
	case kindString:
		writeString(b, n.text)
		return isExpression(n)
	case kindSeq:
		b.WriteByte('[')
		for i, item := range n.items {
			if i > 0 {
				b.WriteByte(',')
			}
			dynamic = writeJSON(b, item) || dynamic
		}
		b.WriteByte(']')
	case kindMap:
		b.WriteByte('{')
		for i, p := range n.pairs {
			if i > 0 {
				b.WriteByte(',')
			}
			key := p.key.text
			if isInsert(key) {
				key = Insert
			}
			writeString(b, key)
			b.WriteByte(':')
			dynamic = writeJSON(b, p.value) || isExpression(p.key) || dynamic
		}
		b.WriteByte('}')
	}
	return dynamic
}

func writeString(b *bytes.Buffer, s string) {
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s) // a string in a buffer cannot fail
	b.Truncate(b.Len() - 1)
}

// matrixError is what is wrong with a matrix and where in it.
type matrixError struct {
	path    []any
	message string
}

func matrixErrorf(path []any, format string, args ...any) *matrixError {
	return &matrixError{path, fmt.Sprintf(format, args...)}
}

// matrixParts are a matrix's vectors, in their order, with its include and exclude lists.
type matrixParts struct {
	keys    []string
	values  [][]expr.Value
	include []*expr.Object
	exclude []*expr.Object
}

// expandMatrix makes the combinations of an evaluated matrix in GitHub's order: the first vector varies slowest, and
// what include adds of its own comes last.
//
// https://docs.github.com/en/actions/how-tos/write-workflows/choose-what-workflows-do/run-job-variations
func expandMatrix(m expr.Value) ([]*expr.Object, *matrixError) {
	parts, err := splitMatrix(m)
	if err != nil {
		return nil, err
	}
	combos, err := parts.product()
	if err != nil {
		return nil, err
	}
	combos = parts.addIncludes(combos)
	switch {
	case len(combos) > MaxMatrix:
		return nil, matrixErrorf(nil, "the matrix has %d combinations; at most %d are allowed", len(combos), MaxMatrix)
	case len(combos) == 0:
		return nil, matrixErrorf([]any{"exclude"}, "the matrix has no combination left")
	}
	return combos, nil
}

func splitMatrix(m expr.Value) (*matrixParts, *matrixError) {
	o := m.Object()
	if o == nil {
		return nil, matrixErrorf(nil, "the matrix is not a mapping")
	}
	p := &matrixParts{}
	for _, key := range o.Keys() {
		v, _ := field(o, key)
		if v.Kind() != expr.KindArray {
			return nil, matrixErrorf([]any{key}, "the matrix vector '%s' is not a sequence", key)
		}
		items := v.Items()
		var err *matrixError
		switch key {
		case "include":
			p.include, err = filterList(key, items)
		case "exclude":
			p.exclude, err = filterList(key, items)
		default:
			if len(items) == 0 {
				return nil, matrixErrorf([]any{key}, "the matrix vector '%s' does not contain any values", key)
			}
			p.keys = append(p.keys, key)
			p.values = append(p.values, items)
		}
		if err != nil {
			return nil, err
		}
	}
	if len(p.keys) == 0 && len(p.include) == 0 {
		return nil, matrixErrorf(nil, "the matrix must define at least one vector")
	}
	return p, p.checkExcludes()
}

func filterList(key string, items []expr.Value) ([]*expr.Object, *matrixError) {
	if len(items) > maxEntries {
		return nil, matrixErrorf([]any{key}, "'%s' has %d entries; at most %d are allowed", key, len(items), maxEntries)
	}
	out := make([]*expr.Object, 0, len(items))
	for i, item := range items {
		o := item.Object()
		if o == nil {
			return nil, matrixErrorf([]any{key, i}, "an entry of '%s' must be a mapping", key)
		}
		if o.Len() == 0 {
			return nil, matrixErrorf([]any{key, i}, "an entry of '%s' does not contain any values", key)
		}
		out = append(out, o)
	}
	return out, nil
}

func (p *matrixParts) checkExcludes() *matrixError {
	for i, ex := range p.exclude {
		for _, key := range ex.Keys() {
			if !p.has(key) {
				return matrixErrorf([]any{"exclude", i, keyOf(key)}, "the exclude key '%s' does not match any key within the matrix%s", key, similar(key, p.keys))
			}
		}
	}
	return nil
}

func (p *matrixParts) has(key string) bool {
	for _, k := range p.keys {
		if strings.EqualFold(k, key) {
			return true
		}
	}
	return false
}

// product is the cross product of the vectors without what exclude takes away.
func (p *matrixParts) product() ([]*expr.Object, *matrixError) {
	if len(p.keys) == 0 {
		return nil, nil
	}
	total, work := 1, max(1, len(p.exclude))
	for _, values := range p.values {
		if total *= len(values); total > maxProduct || total*work > maxWork {
			return nil, matrixErrorf(nil, "the matrix is too large: at most %d combinations are allowed", MaxMatrix)
		}
	}
	var out []*expr.Object
	for i := range total {
		combo := expr.NewObject()
		rest := total
		for k, values := range p.values {
			rest /= len(values)
			combo.Set(p.keys[k], values[i/rest%len(values)])
		}
		if p.excluded(combo) {
			continue
		}
		if out = append(out, combo); len(out) > MaxMatrix {
			return nil, matrixErrorf(nil, "the matrix has more than %d combinations", MaxMatrix)
		}
	}
	return out, nil
}

func (p *matrixParts) excluded(combo *expr.Object) bool {
	for _, ex := range p.exclude {
		if partial(expr.Obj(ex), expr.Obj(combo)) {
			return true
		}
	}
	return false
}

// addIncludes adds the keys of each include entry to the combinations whose own values it does not contradict. One that
// fits nowhere becomes a combination itself, to which later entries are not added.
func (p *matrixParts) addIncludes(combos []*expr.Object) []*expr.Object {
	original := combos[:len(combos):len(combos)]
	for _, in := range p.include {
		fits := false
		for _, combo := range original {
			if !p.agrees(in, combo) {
				continue
			}
			fits = true
			for _, key := range in.Keys() {
				if !p.has(key) {
					v, _ := field(in, key)
					combo.Set(key, v)
				}
			}
		}
		if !fits {
			combos = append(combos, in)
		}
	}
	return combos
}

func (p *matrixParts) agrees(in, combo *expr.Object) bool {
	for _, key := range in.Keys() {
		if !p.has(key) {
			continue
		}
		want, _ := field(in, key)
		have, _ := field(combo, key)
		if !partial(want, have) {
			return false
		}
	}
	return true
}

// partial reports whether all that want says is true of have: mappings may have more keys and sequences more items.
func partial(want, have expr.Value) bool {
	switch want.Kind() {
	case expr.KindObject:
		o := have.Object()
		if o == nil {
			return false
		}
		for _, key := range want.Object().Keys() {
			w, _ := field(want.Object(), key)
			if h, ok := field(o, key); !ok || !partial(w, h) {
				return false
			}
		}
		return true
	case expr.KindArray:
		w, h := want.Items(), have.Items()
		if have.Kind() != expr.KindArray || len(h) < len(w) {
			return false
		}
		for i := range w {
			if !partial(w[i], h[i]) {
				return false
			}
		}
		return true
	}
	return expr.Equal(want, have)
}

// field reads a key of an object that loads nothing lazily.
func field(o *expr.Object, key string) (expr.Value, bool) {
	v, ok, _ := o.Get(key)
	return v, ok
}

// leaves are the scalars of a combination as they show in a job's name; empty ones do not.
func leaves(v expr.Value, out []string) []string {
	switch v.Kind() {
	case expr.KindObject:
		for _, key := range v.Object().Keys() {
			child, _ := field(v.Object(), key)
			out = leaves(child, out)
		}
	case expr.KindArray:
		for _, item := range v.Items() {
			out = leaves(item, out)
		}
	default:
		if s := v.Text(); s != "" {
			out = append(out, s)
		}
	}
	return out
}
