package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// runExpr runs `tgr expr` with args in memory.
func runExpr(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	cmd := newExprCmd()
	var out bytes.Buffer
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.SetArgs(args)
	err := cmd.Execute()
	return out.String(), err
}

func TestExprEval(t *testing.T) {
	file := filepath.Join(t.TempDir(), "contexts.json")
	if err := os.WriteFile(file, []byte(`{"github":{"Ref":"refs/heads/main","n":[1,2.5,null]},"empty":{}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ expr, want string }{
		{"1 == 1.0", `{"kind":"Boolean","value":true,"text":"true"}`},
		{"", `{"kind":"Null","value":null,"text":""}`},
		{"-1e400", `{"kind":"Number","value":"-Infinity","text":"-Infinity"}`},
		{"NaN", `{"kind":"Number","value":"NaN","text":"NaN"}`},
		{"'<&>'", `{"kind":"String","value":"<&>","text":"<&>"}`},
		{"GITHUB.ref", `{"kind":"String","value":"refs/heads/main","text":"refs/heads/main"}`},
		{"github", `{"kind":"Object","value":{"Ref":"refs/heads/main","n":[1,2.5,null]},"text":"Object"}`},
		{"github.n", `{"kind":"Array","value":[1,2.5,null],"text":"Array"}`},
		{"1 +\n 'a", `{"error":{"kind":"lexing","message":"Unexpected symbol: '+'. Located at position 3 within expression: 1 +\n 'a","line":1,"column":3}}`},
		{"true ||\n  secrets.x", `{"error":{"kind":"parsing","message":"Unrecognized named-value: 'secrets'. Located at position 11 within expression: true ||\n  secrets.x","line":2,"column":3}}`},
		{"fromJSON('')", `{"error":{"kind":"evaluation","message":"empty input","line":1,"column":1}}`},
	} {
		for _, args := range [][]string{
			{"eval", "--contexts", file, test.expr},
			{"eval", test.expr, "--contexts=" + file},
			{"eval", "--contexts", file, "--", test.expr},
		} {
			got, err := runExpr(t, "", args...)
			if err != nil {
				t.Errorf("%q: %v", args, err)
			}
			if diff := cmp.Diff(test.want+"\n", got); diff != "" {
				t.Errorf("%q: (-want +got)\n%s", args, diff)
			}
		}
	}
}

func TestExprEvalBatch(t *testing.T) {
	got, err := runExpr(t, `{"expr":"a.b","contexts":{"a":{"b":[1]}}}

{"expr":"a.b"}
{"expr":"1","contexts":null}
{"expr":"1","contexts":[]}
{"contexts":{}}
nonsense
{"expr":"2"}`, "eval", "--batch")
	if err != nil {
		t.Fatal(err)
	}
	want := `{"kind":"Array","value":[1],"text":"Array"}
{"error":{"kind":"parsing","message":"Unrecognized named-value: 'a'. Located at position 1 within expression: a.b","line":1,"column":1}}
{"kind":"Number","value":1,"text":"1"}
{"error":{"kind":"input","message":"input line 5: contexts: want a JSON object, got Array","line":1,"column":1}}
{"error":{"kind":"input","message":"input line 6: no expr","line":1,"column":1}}
{"error":{"kind":"input","message":"input line 7: invalid character 'o' in literal null (expecting 'u')","line":1,"column":1}}
{"kind":"Number","value":2,"text":"2"}
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestExprUsage(t *testing.T) {
	for _, args := range [][]string{
		{"eval"},
		{"eval", "1", "2"},
		{"eval", "--batch", "1"},
		{"eval", "--batch", "--contexts", "x.json"},
		{"eval", "--contexts", filepath.Join(t.TempDir(), "absent.json"), "1"},
		{"eval", "--batch=perhaps"},
		{"eval", "1", "--contexts"},
		{"eval", "--", "1", "2"},
		{"nonsense"},
	} {
		if out, err := runExpr(t, "", args...); err == nil {
			t.Errorf("tgr expr %v: no error; printed %s", args, out)
		}
	}
	bad := filepath.Join(t.TempDir(), "bad.json")
	if err := os.WriteFile(bad, []byte(`[1]`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := runExpr(t, "", "eval", "--contexts", bad, "1"); err == nil || !strings.Contains(err.Error(), "bad.json") {
		t.Errorf("got %v, want an error that names the file", err)
	}
}

func TestExprHelp(t *testing.T) {
	for _, args := range [][]string{{"eval", "--help"}, {"eval", "-h"}} {
		out, err := runExpr(t, "", args...)
		if err != nil || !strings.Contains(out, "--contexts file") || !strings.Contains(out, "--batch") {
			t.Errorf("%q: %v\n%s", args, err, out)
		}
	}
}
