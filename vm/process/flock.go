package process

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/terraphim/tgr/vm"
)

// flock is the agents that this process guards. A nil one guards none.
type flock struct {
	mu     sync.Mutex // held while an agent is started: until it is in agents it looks like a stray
	agents map[int]bool
}

// add starts an agent.
func (f *flock) add(agent *exec.Cmd) error {
	if f == nil {
		return agent.Start()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.agents == nil {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("become a subreaper: %w", err)
		}
		f.agents = map[int]bool{}
	}
	if err := agent.Start(); err != nil {
		return err
	}
	f.agents[agent.Process.Pid] = true
	return nil
}

// remove forgets an agent that was waited for.
func (f *flock) remove(pid int) {
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.agents, pid)
}

// endStrays kills what this process has inherited of agents that were killed: its children that are in sessions of their
// own, as every process of a job is, and that are no agents. Those of a job whose agent lives are that agent's.
func (f *flock) endStrays(ctx context.Context) error {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	children, err := vm.Children(os.Getpid())
	if err != nil {
		return err
	}
	own, err := unix.Getsid(0)
	if err != nil {
		return err
	}
	var strays []vm.Process
	for _, p := range children {
		if sid, err := unix.Getsid(p.PID); err == nil && sid != own && !f.agents[p.PID] {
			strays = append(strays, p)
		}
	}
	_, err = vm.KillTrees(ctx, strays)
	for _, p := range strays {
		syscall.Wait4(p.PID, nil, syscall.WNOHANG, nil) // which nobody else does
	}
	return err
}
