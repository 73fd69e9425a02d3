package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/terraphim/tgr/dispatch"
	"github.com/terraphim/tgr/image"
	"github.com/terraphim/tgr/runner"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/process"
	"github.com/terraphim/tgr/vm/qemu"
)

// machineConfig says which machines jobs get.
type machineConfig struct {
	isolation string // auto, qemu or process
	image     string
	network   string // none or user
	dir       string // state of the machines
	mortal    bool   // the machines are of no use to anybody when this process has ended
	size      vm.Spec
	pool      int64 // bytes of memory that waiting machines may take; 0: none wait
	cold      bool  // machines are booted, never restored
}

// machinesOf reads the settings of machines.
func machinesOf(c *config) (machineConfig, error) {
	m := machineConfig{image: c.get("image"), dir: filepath.Join(c.get("data-dir"), "machines")}
	pool, err6 := c.number("vm-pool", 0, 1<<20)
	m.pool, m.cold = int64(pool)<<20, pool == 0
	memory, err1 := c.number("vm-memory", 128, 1<<20)
	cpus, err2 := c.number("vm-cpus", 1, 64)
	disk, err3 := c.number("vm-disk", 64, 1<<30)
	var err4, err5 error
	m.isolation, err4 = c.oneOf("isolation", "auto", "qemu", "process")
	m.network, err5 = c.oneOf("vm-network", "none", "user")
	m.size = vm.Spec{VCPUs: cpus, Memory: int64(memory) << 20, Disk: int64(disk) << 20}
	return m, errors.Join(err1, err2, err3, err4, err5, err6)
}

// machines gives jobs their machines.
type machines struct {
	*dispatch.Local
	most  int                         // at once, for the host's memory; 0: no limit
	warm  func(context.Context) error // makes the snapshot that machines are restored from; nil: there are none
	close func() error
	ready func(context.Context) error
}

// Close frees what all machines share.
func (m *machines) Close() error { return m.close() }

// Ready reports whether machines can be made.
func (m *machines) Ready(ctx context.Context) error { return m.ready(ctx) }

// openMachines chooses the provider, and reaps what machines of an earlier life left on the host.
func openMachines(ctx context.Context, c machineConfig, log *slog.Logger) (*machines, error) {
	journal := vm.Journal{Dir: c.dir, Volatile: c.mortal}
	reaped, err := journal.Reap(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("reap the machines that an earlier server left: %w", err)
	}
	for _, r := range reaped {
		log.Warn("reaped a machine that an earlier server left", "vm", r.ID, "provider", r.Provider)
	}
	if c.isolation == "process" {
		return openProcesses(c, log)
	}
	return openQEMU(ctx, c, journal, log)
}

// openProcesses gives jobs no isolation: somebody has asked for that by name.
func openProcesses(c machineConfig, log *slog.Logger) (*machines, error) {
	agent, err := agentCommand()
	if err != nil {
		return nil, err
	}
	if c.mortal {
		agent = append(agent, "-orphans", "3s")
	}
	log.Warn("NO ISOLATION: jobs run as processes of this host and of this user; use it only for code that you trust")
	p := process.New(process.Config{Agent: agent, Dir: c.dir, Volatile: c.mortal})
	return &machines{
		Local: &dispatch.Local{Provider: p, Size: c.size, Log: log, Place: processPlace, Shared: true},
		close: func() error { return nil },
		ready: func(context.Context) error { return nil },
	}, nil
}

// agentCommand is the agent for process isolation: $TGR_AGENT, the small binary beside this one, or this one.
func agentCommand() ([]string, error) {
	if agent := os.Getenv("TGR_AGENT"); agent != "" {
		return []string{agent}, nil
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if agent := filepath.Join(filepath.Dir(self), "tgr-guest"); isExecutable(agent) {
		return []string{agent}, nil
	}
	return []string{self, "guest"}, nil
}

func isExecutable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// processPlace keeps a job inside the folder of its machine, as far as it cares to stay there.
func processPlace(m vm.VM) dispatch.Place {
	home := m.(*process.Machine).Home()
	nodes := map[string]string{}
	if node, err := exec.LookPath("node"); err == nil {
		for _, name := range []string{"node12", "node16", "node20", "node24"} {
			nodes[name] = node
		}
	}
	return dispatch.Place{
		Dirs:  runner.Dirs{Home: home, Tools: filepath.Join(home, "tools")},
		Nodes: nodes,
		Env:   map[string]string{"PATH": os.Getenv("PATH"), "LANG": "C.UTF-8"},
	}
}

// openQEMU gives every job a virtual machine.
func openQEMU(ctx context.Context, c machineConfig, journal vm.Journal, log *slog.Logger) (*machines, error) {
	images := &image.Store{Log: log}
	im, err := images.Open(ctx, c.image)
	if err != nil {
		return nil, fmt.Errorf("%w; tgr doctor shows what else is missing", err)
	}
	cfg := qemu.Config{
		Image:   qemu.Image{Kernel: im.Kernel, Initrd: im.Initrd, Root: im.Root, Overlay: im.CloneOverlay, Hash: im.Hash()},
		Journal: journal, Log: log, Warmup: qemu.Warmup{ID: image.Warmup, Run: inMachine(image.Warmup)},
	}
	if c.cold {
		cfg.Image.Hash = ""
	}
	if c.network == "user" {
		cfg.Network = "user"
		log.Warn("jobs have QEMU's user network: they reach the internet, and services on this host's loopback")
	}
	p, err := qemu.New(cfg)
	if err != nil {
		im.Close()
		return nil, err
	}
	verdict, err := p.Accelerator(ctx)
	if err != nil {
		im.Close()
		return nil, err
	}
	log.Info("machines", "isolation", "qemu", "accelerator", verdict.String(), "image", im.Name, "kernel", im.Release)
	m := &machines{
		Local: &dispatch.Local{Provider: p, Size: c.size, Log: log, Place: imagePlace},
		most:  capacity(c.size.Memory),
		warm:  func(ctx context.Context) error { return p.Warm(ctx, c.size) },
		close: im.Close,
		ready: func(ctx context.Context) error {
			_, err := p.Accelerator(ctx)
			return err
		},
	}
	if c.pool == 0 {
		return m, nil
	}
	pool, err := vm.NewPool(vm.PoolConfig{Provider: p, Size: c.size, Greet: inMachine(exercise), Budget: c.pool, Log: log})
	if err != nil {
		im.Close()
		return nil, err
	}
	m.Provider, m.close = pool, func() error { return errors.Join(pool.Close(), im.Close()) }
	return m, nil
}

// capacity is how many machines of so much memory the host has room for now, at least one.
func capacity(memory int64) int {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 1
	}
	for line := range strings.Lines(string(data)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); n == 1 {
			return int(max(1, kib<<10/memory))
		}
	}
	return 1
}

const imagePath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// imagePlace is where our image has things; the folders are GitHub's own.
func imagePlace(vm.VM) dispatch.Place {
	const node20, node24 = "/opt/node20/bin/node", "/opt/node24/bin/node"
	return dispatch.Place{
		Nodes: map[string]string{"node12": node20, "node16": node20, "node20": node20, "node24": node24},
		Env: map[string]string{"PATH": imagePath, "LANG": "C.UTF-8",
			"ImageOS": "debian12", "DEBIAN_FRONTEND": "noninteractive"},
		User: "runner",
	}
}
