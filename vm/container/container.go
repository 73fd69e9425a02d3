// Package container starts machines as containers of an OCI runtime: the agent and the root filesystem of the virtual
// machines, at native speed, on THE HOST'S KERNEL. A hole in that kernel is a way out of such a machine, which is why
// only what is trusted belongs into it.
//
// A machine has user, pid, mount, network, ipc, uts and cgroup namespaces of its own, no capability on the host, the
// default seccomp profile of container engines, no new privileges, limits of memory, processors and processes, and a
// disk of limited size. Its mounts are in a mount namespace that only its processes are in, so that they end with it.
package container

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/network"
)

// Isolation is what Info says of these machines.
const Isolation = "container"

// Config says how machines are made. Root, Overlay, Agent and Journal are required; the zero value of the rest is the
// default.
type Config struct {
	Root    string // ext4, only read
	Agent   string // path of the static tgr-guest binary
	Journal vm.Journal
	// Overlay makes a blank ext4 disk of size bytes at path, which does not exist.
	Overlay func(ctx context.Context, path string, size int64) error
	Runtime string // default: runc from PATH
	// IDs are host users, and groups, that nobody else has, the first and how many: root in a machine is the first.
	// Default 300000 and 65536.
	IDs    [2]int
	Slots  *network.Pool // of the networks of machines, with Inner; nil: machines have only their loopback
	Memory int64         // bytes of a machine that asks for none; default 1 GiB
	Disk   int64         // bytes of disk of a machine that asks for none; default 16 GiB, sparse
	PIDs   int64         // processes and threads of a machine; default 8192
	Log    *slog.Logger  // nil: nothing is logged
}

// Provider starts machines. It is safe for concurrent use.
type Provider struct {
	cfg     Config
	runtime string
	stage   *stage
}

var (
	_ vm.Provider = (*Provider)(nil)
	_ vm.Adopter  = (*Provider)(nil)
)

// startWithin bounds the runtime's work of starting a machine.
const startWithin = 30 * time.Second

// New checks cfg and mounts the root filesystem, where no other process sees it. It needs root. Close ends it.
func New(cfg Config) (*Provider, error) {
	if cfg.Root == "" || cfg.Agent == "" || cfg.Overlay == nil || cfg.Journal.Dir == "" {
		return nil, errors.New("container: Config is not complete")
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("container: machines that are containers have to be started by root")
	}
	if cfg.Runtime == "" {
		cfg.Runtime = "runc"
	}
	runtime, err := exec.LookPath(cfg.Runtime)
	if err != nil {
		return nil, fmt.Errorf("container: %w: install the Debian package runc", err)
	}
	if runtime, err = filepath.Abs(runtime); err != nil {
		return nil, err
	}
	if cfg.IDs == [2]int{} {
		cfg.IDs = [2]int{300000, 65536}
	}
	if cfg.IDs[0] < 1 || cfg.IDs[1] < 1 {
		return nil, fmt.Errorf("container: users %d to %d: want some, and not root", cfg.IDs[0], cfg.IDs[0]+cfg.IDs[1]-1)
	}
	if cfg.Memory == 0 {
		cfg.Memory = 1 << 30
	}
	if cfg.Disk == 0 {
		cfg.Disk = 16 << 30
	}
	if cfg.PIDs == 0 {
		cfg.PIDs = 8192
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	st, err := newStage(cfg.Root, cfg.Agent, cfg.IDs)
	if err != nil {
		return nil, &vm.InfraError{Op: "container: mount the root filesystem", Err: err}
	}
	return &Provider{cfg: cfg, runtime: runtime, stage: st}, nil
}

// Close lets go of the root filesystem. Machines that run are not affected; none is started any more.
func (p *Provider) Close() error { return p.stage.close() }

// Start starts a machine. It obeys vm.Provider.
func (p *Provider) Start(ctx context.Context, s vm.Spec) (vm.VM, error) {
	begin := time.Now()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if s.VCPUs < 0 || s.Memory < 0 || s.Disk < 0 {
		return nil, &vm.InfraError{Op: "container: machine " + s.ID, Err: fmt.Errorf(
			"%d processors, %d bytes of memory, %d of disk: out of range", s.VCPUs, s.Memory, s.Disk)}
	}
	s.VCPUs = max(s.VCPUs, 1)
	if s.Memory == 0 {
		s.Memory = p.cfg.Memory
	}
	if s.Disk == 0 {
		s.Disk = p.cfg.Disk
	}
	rec, err := p.cfg.Journal.Open(s.ID, Isolation)
	if err != nil {
		return nil, &vm.InfraError{Op: "container: journal", Err: err}
	}
	m := &machine{id: s.ID, rec: rec, Ending: vm.NewEnding()}
	if err := m.start(ctx, p, s); err != nil {
		return nil, errors.Join(m.startError(ctx, err), m.Close())
	}
	m.boot = time.Since(begin)
	p.cfg.Log.Info("machine started", "vm", s.ID, "isolation", Isolation, "took", m.boot.Round(time.Millisecond))
	return m, nil
}
