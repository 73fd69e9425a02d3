package qemu

import (
	"runtime"
	"testing"
)

func TestHostTSC(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		if got := hostTSC(); got != 0 {
			t.Errorf("got %d kHz", got)
		}
		return
	}
	a, b := hostTSC(), hostTSC()
	if a < 500e3 || a > 10e6 || a%tscRound != 0 {
		t.Errorf("%d kHz", a)
	}
	if d := float64(a-b) / float64(a); d > 0.001 || d < -0.001 {
		t.Errorf("%d and %d kHz", a, b)
	}
}

// TestSteady: one step of rounding up or down is the same rate, more is another, and without a folder nothing is kept.
func TestSteady(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct{ measured, want int64 }{
		{2596100, 2596100}, {2596200, 2596100}, {2596000, 2596100}, {2596300, 2596300}, {2596200, 2596300}, {0, 0}, {2596100, 2596100},
	} {
		if got := steady(dir, tt.measured); got != tt.want {
			t.Errorf("measured %d: %d, want %d", tt.measured, got, tt.want)
		}
	}
	if got := steady("", 2596200); got != 2596200 {
		t.Errorf("without a folder: %d", got)
	}
}
