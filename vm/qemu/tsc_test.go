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
