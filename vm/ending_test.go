package vm_test

import (
	"context"
	"errors"
	"testing"

	"github.com/terraphim/tgr/vm"
)

func TestEnding(t *testing.T) {
	e := vm.NewEnding()
	why, late := errors.New("why"), errors.New("late")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(late)
	if err := e.Wait(ctx); err != late {
		t.Errorf("of a machine that runs: %v", err)
	}
	if e.HasEnded() {
		t.Error("it has ended before it did")
	}
	if !e.Settle(why) || e.Settle(nil) {
		t.Error("not the first end counts")
	}
	<-e.Ended()
	if !e.HasEnded() {
		t.Error("it has not ended")
	}
	// That the machine has ended is worth more than that nobody wants to wait any more.
	for range 100 {
		if err := e.Wait(ctx); err != why {
			t.Fatalf("Wait: %v", err)
		}
	}
}
