package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/network"
)

// egressOf reads what jobs may reach of the network, and how much they may take of it: of all repositories, and of those
// that the file names.
func egressOf(c *config) (func(tgr.Run) vm.Egress, error) {
	all, err := parseEgress(c.get("egress"), c.get("egress-allow"))
	if err != nil {
		return nil, usagef("egress (from %s): %v", c.origin["egress"], err)
	}
	for _, l := range networkLimits() {
		n, err := c.number(l.key, 1, l.most)
		if err != nil {
			return nil, err
		}
		l.set(&all.Limits, n)
	}
	repos := map[string]vm.Egress{}
	for name, own := range c.repos {
		e, err := egressOfRepository(c, own, all.Limits)
		if err != nil {
			return nil, usagef("%s: repositories: %s: %v", c.file, name, err)
		}
		repos[strings.ToLower(name)] = e
	}
	return func(run tgr.Run) vm.Egress {
		if e, ok := repos[strings.ToLower(run.Event.Repo.FullName)]; ok {
			return e
		}
		return all
	}, nil
}

// egressOfRepository is what all repositories have, but for a repository's own settings.
func egressOfRepository(c *config, own map[string]string, limits vm.NetLimits) (vm.Egress, error) {
	mode, allow := c.get("egress"), c.get("egress-allow")
	if v, ok := own["egress-allow"]; ok {
		mode, allow = string(vm.EgressAllow), v // a list says that it is to be obeyed
	}
	if v, ok := own["egress"]; ok {
		mode = v
	}
	e, err := parseEgress(mode, allow)
	if err != nil {
		return e, err
	}
	e.Limits = limits
	for _, l := range networkLimits() {
		v, ok := own[l.key]
		if !ok {
			continue
		}
		n, err := wholeNumber(v, 1, l.most)
		if err != nil {
			return e, fmt.Errorf("%s is %w", l.key, err)
		}
		l.set(&e.Limits, n)
	}
	return e, nil
}

// networkLimit is a setting that bounds what a machine takes of the network.
type networkLimit struct {
	key  string
	most int
	set  func(*vm.NetLimits, int)
}

func networkLimits() []networkLimit {
	const megabit = 1_000_000 / 8 // bytes
	return []networkLimit{
		{"egress-rate", 100_000, func(l *vm.NetLimits, n int) { l.Bandwidth = int64(n) * megabit }},
		{"egress-connections", 1_000_000, func(l *vm.NetLimits, n int) { l.Connections = n }},
		{"egress-new-connections", 1_000_000, func(l *vm.NetLimits, n int) { l.NewPerSecond = n }},
	}
}

// parseEgress reads a mode and a list of hosts, separated by white space or commas.
func parseEgress(mode, allow string) (vm.Egress, error) {
	e := vm.Egress{Mode: vm.EgressMode(mode)}
	if e.Mode == vm.EgressAllow {
		e.Allow = strings.FieldsFunc(allow, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' || r == '\n' })
		if len(e.Allow) == 0 {
			return e, fmt.Errorf("egress is allow, and egress-allow names no host; for no network at all it is none")
		}
	}
	return e, network.CheckEgress(e)
}

// openSlots makes the networks of machines, if they are to have some: nil where they have none, or QEMU's own.
func openSlots(c machineConfig, journal vm.Journal, log *slog.Logger) (*network.Pool, error) {
	if c.network != "auto" && c.network != "slots" {
		return nil, nil
	}
	if c.network == "auto" && os.Geteuid() != 0 {
		log.Warn("machines have no network: only root can give each one its own; tgr doctor says more")
		return nil, nil
	}
	cfg := network.Config{Journal: journal, Log: log, Inner: c.isolation == "container"}
	if c.mortal {
		cfg.Ready, cfg.Brief = 1, true
	}
	slots, err := network.Open(cfg)
	if err != nil && c.network == "auto" {
		log.Warn("machines have no network: this host cannot give each one its own; tgr doctor says more", "error", err)
		return nil, nil
	}
	return slots, err
}

// connected is a provider whose machines have their network as soon as they are started: those of the VM management API,
// whose callers have no repository.
type connected struct {
	vm.Provider
	egress vm.Egress
	log    *slog.Logger
}

// Start obeys vm.Provider.
func (c connected) Start(ctx context.Context, s vm.Spec) (vm.VM, error) {
	m, err := c.Provider.Start(ctx, s)
	n, ok := m.(vm.Networked)
	if err != nil || !ok {
		return m, err
	}
	e := c.egress
	e.Denied = func(d vm.Denial) { c.log.Warn("network: "+d.String(), "vm", s.ID) }
	if err := n.SetEgress(s.ID, e); err != nil {
		return nil, errors.Join(&vm.InfraError{Op: "network of machine " + s.ID, Err: err}, m.Close())
	}
	return m, nil
}

// checkNetwork makes the network of a machine, in a namespace of its own.
func checkNetwork() finding {
	f := finding{Name: "network"}
	if err := network.Probe(); err != nil {
		f.Found, f.Fix = err.Error(), "run the server as root: without that, machines have no network"
		return f
	}
	f.OK, f.Found = true, "every machine gets a network namespace of its own"
	if what := network.Blocked(); what != "" {
		f.OK, f.Found = false, what+" drops what this host forwards, and so what machines send"
		f.Fix = `let it accept interfaces whose name begins with "tg"`
	}
	return f
}
