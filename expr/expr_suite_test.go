package expr_test

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/terraphim/tgr/expr"
)

// suiteCase is a case of GitHub's own expression tests.
type suiteCase struct {
	Expr     string
	Contexts json.RawMessage
	Result   *struct {
		Kind  string
		Value any
	}
	Err *struct {
		Kind  string
		Value string
	}
}

// suiteEnv makes an Env whose known names are the keys of contexts.
func suiteEnv(t *testing.T, contexts json.RawMessage) *expr.Env {
	t.Helper()
	env := &expr.Env{}
	if len(contexts) > 0 {
		v, err := expr.FromJSON(contexts)
		if err != nil {
			t.Fatal(err)
		}
		env.Contexts = v.Object()
	}
	return env
}

func evalText(text string, env *expr.Env) (expr.Value, error) {
	e, err := expr.Parse(text)
	if err != nil {
		return expr.Null(), err
	}
	return e.Eval(env)
}

func TestSuite(t *testing.T) {
	files, err := filepath.Glob("../../shared/suites/expressions/*.json")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Skip("no conformance data in ../../shared/suites/expressions")
	}
	cases := 0
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var groups map[string][]suiteCase
			if err := json.Unmarshal(data, &groups); err != nil {
				t.Fatal(err)
			}
			for name, list := range groups {
				for _, c := range list {
					cases++
					checkSuiteCase(t, name, c)
				}
			}
		})
	}
	if cases != 379 {
		t.Errorf("ran %d cases, want 379", cases)
	}
}

func checkSuiteCase(t *testing.T, name string, c suiteCase) {
	t.Helper()
	got, err := evalText(c.Expr, suiteEnv(t, c.Contexts))
	if c.Err != nil {
		e, ok := err.(*expr.Error)
		if !ok {
			t.Errorf("%s: %s: got %s (%v), want an error: %s", name, c.Expr, got.JSON(), err, c.Err.Value)
			return
		}
		if e.Kind.String() != c.Err.Kind || !strings.HasPrefix(e.Message, c.Err.Value) {
			t.Errorf("%s: %s: got %s error %q, want %s error %q", name, c.Expr, e.Kind, e.Message, c.Err.Kind, c.Err.Value)
		}
		return
	}
	if err != nil {
		t.Errorf("%s: %s: %v", name, c.Expr, err)
		return
	}
	want := expr.FromAny(c.Result.Value)
	if got.Kind().String() != c.Result.Kind || !sameJSON(got, want) {
		t.Errorf("%s: %s: got %s %s, want %s %s", name, c.Expr, got.Kind(), got.JSON(), c.Result.Kind, want.JSON())
	}
}

// sameJSON compares values by what they hold.
func sameJSON(a, b expr.Value) bool {
	if a.Kind() == expr.KindNumber && b.Kind() == expr.KindNumber {
		return a.Float() == b.Float() || math.IsNaN(a.Float()) && math.IsNaN(b.Float())
	}
	return a.JSON() == b.JSON()
}

// Every list of contexts in GitHub's workflow schema is a Scope, and the language's statuses are where they belong.
func TestSchemaScopes(t *testing.T) {
	data, err := os.ReadFile("../../shared/suites/schemas/workflow-v1.0.json")
	if os.IsNotExist(err) {
		t.Skip("no schema in ../../shared/suites/schemas")
	}
	if err != nil {
		t.Fatal(err)
	}
	var schema struct {
		Definitions map[string]struct{ Context []string }
	}
	if err := json.Unmarshal(data, &schema); err != nil {
		t.Fatal(err)
	}
	scopes := map[string]*expr.Scope{}
	for name, definition := range schema.Definitions {
		if scopes[name], err = expr.NewScope(definition.Context...); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, test := range []struct {
		place, condition string
		ok               bool
	}{
		{"job-if", "success('a', 'b') && needs.x.result == 'success'", true},
		{"job-if", "hashFiles('a')", false},
		{"job-if", "matrix.os", false},
		{"step-if", "hashFiles('go.sum') != '' && steps.x.outcome", true},
		{"step-if", "success('a')", false},
		{"run-name", "github.actor", true},
		{"run-name", "secrets.x", false},
	} {
		e, err := expr.Parse(test.condition)
		if err != nil {
			t.Fatal(err)
		}
		if errs := e.Check(scopes[test.place]); (len(errs) == 0) != test.ok {
			t.Errorf("%s: %s: %v", test.place, test.condition, errs)
		}
	}
}
