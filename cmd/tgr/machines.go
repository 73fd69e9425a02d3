package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/dispatch"
	"github.com/terraphim/tgr/runner"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/process"
)

// machineConfig says which machines jobs get.
type machineConfig struct {
	isolation string             // one of isolations
	contained func(tgr.Run) bool // jobs of this run run in containers; nil: none do
	image     string
	network   string // auto, slots, none or user
	egress    func(tgr.Run) vm.Egress
	dir       string               // state of the machines
	keep      func(id string) bool // of those that an earlier server left: do not reap it; nil: reap all
	mortal    bool                 // the machines are of no use to anybody when this process has ended
	size      vm.Spec
	labels    dispatch.Labels
	pool      int64 // bytes of memory that waiting machines may take; 0: none wait
	cold      bool  // machines are booted, never restored
	remote    remoteConfig
}

// isolations are what may be asked for. auto is the best of the next two that boots a guest.
func isolations() []string { return []string{"auto", "firecracker", "qemu", "container", "process"} }

const isolationHelp = "auto (the best that boots a guest), firecracker, qemu, container (the host's kernel, for what is trusted; the rest as auto), or process (no isolation at all)"

// machinesOf reads the settings of machines.
func machinesOf(c *config) (machineConfig, error) {
	m := machineConfig{image: c.get("image"), dir: filepath.Join(c.get("data-dir"), "machines"), remote: remoteOf(c)}
	pool, err6 := c.number("vm-pool", 0, 1<<20)
	m.pool, m.cold = int64(pool)<<20, pool == 0
	memory, err1 := c.number("vm-memory", 128, 1<<20)
	cpus, err2 := c.number("vm-cpus", 1, 64)
	disk, err3 := c.number("vm-disk", 64, 1<<30)
	var err4, err5 error
	m.isolation, err4 = c.oneOf("isolation", isolations()...)
	var err9 error
	m.contained, err9 = containedOf(c)
	m.network, err5 = c.oneOf("vm-network", "auto", "slots", "none", "user")
	m.size = vm.Spec{VCPUs: cpus, Memory: int64(memory) << 20, Disk: int64(disk) << 20}
	var err7 error
	m.labels, err7 = labelsOf(c)
	var err8 error
	m.egress, err8 = egressOf(c)
	return m, errors.Join(err1, err2, err3, err4, err5, err6, err7, err8, err9)
}

// labelsOf reads which labels mean which machines: those that any server knows, and those of the setting, which win.
func labelsOf(c *config) (dispatch.Labels, error) {
	own, err := dispatch.ParseLabels(c.get("labels"))
	if err != nil {
		return nil, usagef("labels (from %s): %v", c.origin["labels"], err)
	}
	labels := dispatch.HostedLabels()
	maps.Copy(labels, own)
	return labels, nil
}

// machines gives jobs their machines.
type machines struct {
	dispatch.Machines
	labels dispatch.Labels
	egress func(tgr.Run) vm.Egress     // what the jobs of a run reach of the network
	most   int                         // at once, for the host's memory; 0: no limit
	warm   func(context.Context) error // makes the snapshot that machines are restored from; nil: there are none
	close  func() error
	ready  func(context.Context) error
}

// Adopt implements dispatch.Adopter.
func (m *machines) Adopt(ctx context.Context, s dispatch.Spec, id string) (*dispatch.Machine, func(), error) {
	return dispatch.Adopt(ctx, m.Machines, s, id)
}

// Close frees what all machines share.
func (m *machines) Close() error { return m.close() }

// Ready reports whether machines can be made.
func (m *machines) Ready(ctx context.Context) error { return m.ready(ctx) }

// openMachines chooses the provider, and reaps what machines of an earlier life left on the host.
func openMachines(ctx context.Context, c machineConfig, log *slog.Logger) (*machines, error) {
	if c.remote.url != "" {
		return openRemote(ctx, c, log)
	}
	journal := vm.Journal{Dir: c.dir, Volatile: c.mortal}
	reaped, err := journal.Reap(ctx, c.keep)
	if err != nil {
		return nil, fmt.Errorf("reap the machines that an earlier server left: %w", err)
	}
	for _, r := range reaped {
		log.Warn("reaped a machine that an earlier server left", "vm", r.ID, "provider", r.Provider)
	}
	if c.isolation == "process" {
		return openProcesses(c, log)
	}
	if c.contained != nil {
		return openContainers(ctx, c, journal, log)
	}
	return openVMs(ctx, c, journal, log)
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
	nodes := newHostNodes(log)
	p := process.New(process.Config{Agent: agent, Dir: c.dir, Volatile: c.mortal, Guard: c.mortal, Scratch: memoryFolder()})
	return &machines{
		Machines: &dispatch.Local{Provider: p, Size: c.size, Log: log, Place: func(m vm.VM) dispatch.Place { return processPlace(m, nodes) }, Shared: true, Host: true}, labels: c.labels, egress: c.egress,
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

// memoryFolder is where files live in memory; "" where there is no such place.
func memoryFolder() string {
	const dir = "/dev/shm"
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil || st.Type != unix.TMPFS_MAGIC || unix.Access(dir, unix.W_OK) != nil {
		return ""
	}
	return dir
}

// processPlace keeps a job inside the folder of its machine, as far as it cares to stay there.
func processPlace(m vm.VM, nodes *hostNodes) dispatch.Place {
	home, scratch := m.(*process.Machine).Home(), m.(*process.Machine).Scratch()
	return dispatch.Place{
		Dirs: runner.Dirs{Home: home, Tools: filepath.Join(home, "tools"), Commands: scratch},
		Node: nodes.path,
		Env:  map[string]string{"PATH": os.Getenv("PATH"), "LANG": "C.UTF-8", "SHELL": "/bin/bash"},
	}
}
