package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestFigure(t *testing.T) {
	met, missed := true, false
	for name, tt := range map[string]struct {
		f           figure
		median, p99 float64
		want        *bool
	}{
		"nothing":       {figure{Bar: 1}, 0, 0, nil},
		"no bar":        {figure{Samples: []float64{3, 1, 2}}, 2, 3, nil},
		"met":           {figure{Bar: 2, Samples: []float64{3, 1, 2}}, 2, 3, &met},
		"missed":        {figure{Bar: 1.9, Samples: []float64{3, 1, 2}}, 2, 3, &missed},
		"p99 missed":    {figure{Bar: 2, BarP99: 2.9, Samples: []float64{3, 1, 2}}, 2, 3, &missed},
		"rate met":      {figure{Bar: 2, AtLeast: true, Samples: []float64{3, 1, 2}}, 2, 1, &met},
		"rate not met":  {figure{Bar: 2.1, AtLeast: true, Samples: []float64{3, 1, 2}}, 2, 1, &missed},
		"of one sample": {figure{Bar: 2, Samples: []float64{2}}, 2, 2, &met},
	} {
		t.Run(name, func(t *testing.T) {
			f := tt.f
			f.settle()
			if f.Median != tt.median || f.P99 != tt.p99 || f.N != len(f.Samples) {
				t.Errorf("median %v, p99 %v, n %d", f.Median, f.P99, f.N)
			}
			if (f.Met == nil) != (tt.want == nil) || f.Met != nil && *f.Met != *tt.want {
				t.Errorf("met %v, want %v", f.Met, tt.want)
			}
		})
	}
}

func TestBarsApply(t *testing.T) {
	var b benchVM
	b.took("restored: agent answered", 70*time.Millisecond)
	b.took("restored: agent answered", 50*time.Millisecond)
	b.took("something else", time.Second)
	if len(b.figures) != 2 || b.figures[0].Bar != 60 || b.figures[0].BarP99 != 150 || b.figures[1].Bar != 0 {
		t.Errorf("got %+v", b.figures)
	}
	if s := b.figures[0].Samples; len(s) != 2 || s[0] != 70 {
		t.Errorf("samples %v", s)
	}
}

func TestAwaitLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	write := func(s string) {
		if err := os.WriteFile(path, []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"msg":"a machine waits"}` + "\n")
	if err := awaitLog(t.Context(), path, "a machine waits", 1); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("enough")
	cancel(gone)
	if err := awaitLog(ctx, path, "a machine waits", 2); err == nil {
		t.Error("there is only one line")
	}
	write(string(bytes.Repeat([]byte(`{"msg":"a machine waits"}`+"\n"), 2)))
	if err := awaitLog(t.Context(), path, "a machine waits", 2); err != nil {
		t.Error(err)
	}
}
