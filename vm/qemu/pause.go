package qemu

import (
	"context"
	"fmt"

	"github.com/terraphim/tgr/vm"
)

var _ vm.Pauser = (*machine)(nil)

// Pause stops the machine's processors.
func (m *machine) Pause(ctx context.Context) error { return m.command(ctx, "stop") }

// Resume lets them go on.
func (m *machine) Resume(ctx context.Context) error { return m.command(ctx, "cont") }

func (m *machine) command(ctx context.Context, name string) error {
	if err := m.emulator().qmp.execute(ctx, name, nil, nil); err != nil {
		return &vm.InfraError{Op: fmt.Sprintf("machine %s: %s", m.rec.ID(), name), Err: err}
	}
	return nil
}
