package expr_test

import (
	"strings"
	"testing"

	"github.com/terraphim/tgr/expr"
)

const benchCondition = "github.event_name == 'push' && startsWith(github.ref, 'refs/tags/v') || contains(github.event.labels.*.name, 'release')"

func BenchmarkParse(b *testing.B) {
	b.ReportAllocs()
	b.SetBytes(int64(len(benchCondition)))
	for b.Loop() {
		if _, err := expr.Parse(benchCondition); err != nil {
			b.Fatal(err)
		}
	}
}

// The longest expression there may be costs in proportion.
func BenchmarkParseLong(b *testing.B) {
	text := strings.Repeat(benchCondition+" || ", 20999/(len(benchCondition)+4)-1) + "true"
	b.ReportAllocs()
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if _, err := expr.Parse(text); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTemplate(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := expr.ParseTemplate("echo ${{ github.ref }} and ${{ matrix.os }}, then go on"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEval(b *testing.B) {
	v, err := expr.FromJSON([]byte(`{"github": {"event_name": "pull_request", "ref": "refs/heads/main", "event": {"labels": [{"name": "bug"}, {"name": "Release"}]}}}`))
	if err != nil {
		b.Fatal(err)
	}
	env := &expr.Env{Contexts: v.Object()}
	e, err := expr.Parse(benchCondition)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if v, err := e.Eval(env); err != nil || !v.Truthy() {
			b.Fatal(v, err)
		}
	}
}

func BenchmarkFromJSON(b *testing.B) {
	data := []byte("[" + strings.Repeat(`{"name": "bug", "id": 12345, "labels": ["a", "b", null], "nested": {"ok": true}}, `, 1000) + "0]")
	b.ReportAllocs()
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := expr.FromJSON(data); err != nil {
			b.Fatal(err)
		}
	}
}
