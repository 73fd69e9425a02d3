package workflow

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// official is a definition of GitHub's authoring schema, in the shape of its JSON.
type official struct {
	Context []string `json:"context"`
	OneOf   []string `json:"one-of"`
	Allowed []string `json:"allowed-values"`
	Null    *struct{}
	Boolean *struct{}
	Number  *struct{}
	String  *struct {
		Constant   string
		NonEmpty   bool `json:"require-non-empty"`
		Expression bool `json:"is-expression"`
	}
	Sequence *struct {
		Item string `json:"item-type"`
	}
	Mapping *struct {
		Properties map[string]officialProperty
		Loose      string `json:"loose-value-type"`
	}
}

// officialProperty is the name of a definition, or an object with it.
type officialProperty struct {
	Type     string
	Required bool
}

func (p *officialProperty) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		return json.Unmarshal(b, &p.Type)
	}
	type plain officialProperty
	return json.Unmarshal(b, (*plain)(p))
}

// comparison walks the schema and the grammar side by side and writes down where they differ.
type comparison struct {
	definitions map[string]*official
	differences []string
	seen        map[string]bool
}

func (c *comparison) differ(path, format string, args ...any) {
	c.differences = append(c.differences, path+": "+fmt.Sprintf(format, args...))
}

// forms resolves a definition's alternatives. Contexts of the alternatives count for the whole, as in the grammar.
func (c *comparison) forms(name string, above map[string]bool) (all []*official, contexts map[string]bool) {
	contexts = maps.Clone(above)
	if contexts == nil {
		contexts = map[string]bool{}
	}
	var add func(name string)
	add = func(name string) {
		switch name {
		case "null", "boolean", "number", "string", "sequence", "mapping", "any":
			all = append(all, builtinForm(name))
			return
		}
		d := c.definitions[name]
		for _, context := range d.Context {
			contexts[context] = true
		}
		if d.OneOf == nil {
			all = append(all, d)
		}
		for _, one := range d.OneOf {
			add(one)
		}
	}
	add(name)
	return all, contexts
}

func builtinForm(name string) *official {
	o := &official{}
	switch name {
	case "null":
		o.Null = &struct{}{}
	case "boolean":
		o.Boolean = &struct{}{}
	case "number":
		o.Number = &struct{}{}
	case "string":
		_ = json.Unmarshal([]byte(`{"string":{}}`), o)
	case "sequence":
		_ = json.Unmarshal([]byte(`{"sequence":{"item-type":"any"}}`), o)
	case "mapping":
		_ = json.Unmarshal([]byte(`{"mapping":{"loose-value-type":"any"}}`), o)
	}
	return o
}

func (c *comparison) compare(path, name string, s *shape, above map[string]bool, ours allow) {
	if name == "any" || s.name == "anything" {
		return
	}
	ours |= s.allow
	forms, contexts := c.forms(name, above)
	if want, got := sortedContexts(contexts), ours.signatures(); !slices.Equal(want, got) {
		c.differ(path, "contexts (-schema +ours)\n%s", cmp.Diff(want, got))
	}
	var mappings []*official
	for _, f := range forms {
		switch {
		case f.Null != nil && !s.null && s.text != anyText:
			c.differ(path, "null is not accepted")
		case f.Boolean != nil && !s.boolean && s.text != anyText:
			c.differ(path, "booleans are not accepted")
		case f.Number != nil && !s.number && s.text != anyText:
			c.differ(path, "numbers are not accepted")
		case f.String != nil:
			c.compareString(path, f, s)
		case f.Allowed != nil:
			for _, w := range f.Allowed {
				if !slices.Contains(s.words, w) {
					c.differ(path, "'%s' is not accepted", w)
				}
			}
		case f.Sequence != nil && s.item == nil:
			c.differ(path, "a sequence is not accepted")
		case f.Sequence != nil:
			c.compare(path+"[]", f.Sequence.Item, s.item, contexts, ours)
		case f.Mapping != nil:
			mappings = append(mappings, f)
		}
	}
	c.compareMappings(path, mappings, s, contexts, ours)
}

func (c *comparison) compareString(path string, f *official, s *shape) {
	switch {
	case f.String.Expression != s.cond:
		c.differ(path, "is an expression: %v in the schema", f.String.Expression)
	case f.String.Constant != "" && !slices.Contains(s.words, f.String.Constant) && s.text != anyText:
		c.differ(path, "'%s' is not accepted", f.String.Constant)
	case f.String.Constant == "" && s.text != anyText && s.text != nonEmpty:
		c.differ(path, "strings are not accepted")
	case f.String.Constant == "" && f.String.NonEmpty && s.text == anyText:
		c.differ(path, "an empty string is accepted")
	}
}

func (c *comparison) compareMappings(path string, forms []*official, s *shape, contexts map[string]bool, ours allow) {
	for _, f := range forms {
		for _, key := range sortedKeys(f.Mapping.Properties) {
			def := f.Mapping.Properties[key]
			p := propOf(s, key)
			if p == nil {
				c.differ(path+"."+key, "is not known")
				continue
			}
			if def.Required && !p.required {
				c.differ(path+"."+key, "is required")
			}
			if id := path + "." + key; !c.seen[id] {
				c.seen[id] = true
				c.compare(id, def.Type, p.shape, contexts, ours)
			}
		}
		if f.Mapping.Loose == "" {
			continue
		}
		if len(s.maps) == 0 || s.maps[0].loose == nil {
			c.differ(path+".*", "other keys are not accepted")
			continue
		}
		c.compare(path+".*", f.Mapping.Loose, s.maps[0].loose, contexts, ours)
	}
}

func propOf(s *shape, key string) *prop {
	for _, m := range s.maps {
		if p := m.prop(key); p != nil {
			return p
		}
	}
	return nil
}

func sortedContexts(m map[string]bool) []string {
	return slices.Sorted(maps.Keys(m))
}

// signatures are the contexts and functions of a set as the schema writes them.
func (a allow) signatures() []string {
	out := []string{}
	s := a.scope()
	out = append(out, s.Contexts...)
	for _, f := range s.Functions {
		limit := fmt.Sprint(f.Max)
		if f.Max < 0 {
			limit = "MAX"
		}
		out = append(out, fmt.Sprintf("%s(%d,%s)", f.Name, f.Min, limit))
	}
	slices.Sort(out)
	return out
}

// TestGrammarAgainstSchema holds the grammar to GitHub's own authoring schema: all that it knows is known, and each key
// may use the same contexts and functions.
func TestGrammarAgainstSchema(t *testing.T) {
	for _, tt := range []struct {
		file, root string
		shape      *shape
		known      []string // where we differ, and why
	}{
		{"workflow-v1.0.json", "workflow-root-strict", workflowShape(), nil},
		{"action_yaml.json", "action-root", actionShape(), []string{
			// Plain strings to the schema, conditions to the runner: we check them as what they are.
			"action-root.runs.pre-if: ", "action-root.runs.post-if: ", "action-root.runs.steps[].if: is an expression",
		}},
	} {
		data := bytes.TrimPrefix(readFile(t, suite(t, "schemas/"+tt.file)), []byte(byteOrderMark))
		c := &comparison{seen: map[string]bool{}}
		c.definitions = decode[struct{ Definitions map[string]*official }](t, data).Definitions
		c.compare(tt.root, tt.root, tt.shape, nil, 0)
		for _, d := range c.differences {
			if !slices.ContainsFunc(tt.known, func(k string) bool { return strings.HasPrefix(d, k) }) {
				t.Error(d)
			}
		}
	}
}
