package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/dispatch"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/container"
)

// containedOf reads whose jobs run in containers: those of all repositories, or of some, and only of runs that are
// trusted. nil: nobody's.
func containedOf(c *config) (func(tgr.Run) bool, error) {
	all := c.get("isolation") == "container"
	some := map[string]bool{}
	for name, own := range c.repos {
		switch v, ok := own["isolation"]; {
		case ok && v == "container":
			some[strings.ToLower(name)] = true
		case ok:
			return nil, usagef("%s: repositories: %s: isolation is %q: only container may be chosen for a repository", c.file, name, v)
		}
	}
	if !all && len(some) == 0 {
		return nil, nil
	}
	return func(run tgr.Run) bool {
		return dispatch.Trusted(run.Event) && (all || some[strings.ToLower(run.Event.Repo.FullName)])
	}, nil
}

// mixed gives containers to the jobs that may run in one and have none of their own, and virtual machines to the rest.
type mixed struct {
	contained       func(tgr.Run) bool
	containers, vms dispatch.Machines
	journal         vm.Journal // of both
}

// Acquire implements dispatch.Machines.
func (m mixed) Acquire(ctx context.Context, s dispatch.Spec) (*dispatch.Machine, func(), error) {
	if m.contained(s.Run) && !s.Engine {
		return m.containers.Acquire(ctx, s)
	}
	return m.vms.Acquire(ctx, s)
}

// Adopt implements dispatch.Adopter. What a machine is the journal knows: which jobs may run in a container may have changed.
func (m mixed) Adopt(ctx context.Context, s dispatch.Spec, id string) (*dispatch.Machine, func(), error) {
	of := m.vms
	if e, err := m.journal.Entry(id); err == nil && e.Provider == container.Isolation {
		of = m.containers
	}
	return dispatch.Adopt(ctx, of, s, id)
}

// openContainers runs some jobs in containers. The rest has virtual machines, which are made ready now where they are
// the rule, and otherwise when the first is wanted.
func openContainers(ctx context.Context, c machineConfig, journal vm.Journal, log *slog.Logger) (*machines, error) {
	log.Warn("trusted jobs run in containers, which share this host's kernel", "all", c.isolation == "container")
	h := &vmHost{c: c, journal: journal, log: log, images: map[string]*vmImage{}}
	h.c.isolation = "container"
	im, err := h.image(ctx, c.image)
	if err != nil {
		return nil, errors.Join(err, h.close())
	}
	fleet := &dispatch.Fleet{Labels: c.labels, Open: h.open}
	vms := &vmHost{c: c, journal: journal, log: log, images: map[string]*vmImage{}}
	if c.isolation == "container" {
		vms.c.isolation = "auto"
	}
	rest := &dispatch.Fleet{Labels: c.labels, Open: vms.open, Engine: vms.engine(ctx)}
	out := &machines{
		Machines: mixed{c.contained, fleet, rest, journal}, labels: c.labels, egress: c.egress, most: capacity(c.size.Memory), ready: im.works,
		close: func() error { return errors.Join(h.close(), vms.close()) },
	}
	if c.pool == 0 {
		return out, nil
	}
	first := fleet
	if c.isolation != "container" {
		first = rest
	}
	if err := first.Ready(ctx, dispatch.Kind{}); err != nil {
		return nil, errors.Join(err, out.close())
	}
	return out, nil
}

// container starts machines of an image as containers.
func (h *vmHost) container(v *vmImage) error {
	agent, err := findAgent()
	if err != nil {
		return err
	}
	p, err := container.New(container.Config{
		Root: v.image.Root, Overlay: v.image.CloneOverlay, Agent: agent, Journal: h.journal, Slots: h.slots, Log: h.log,
	})
	if err != nil {
		return fmt.Errorf("--isolation=container: %w", err)
	}
	v.backend, v.works = p, func(context.Context) error { return nil }
	h.log.Info("machines", "isolation", "container", "image", v.image.Name)
	return nil
}

// contained is a place in a container, where nobody gets new privileges: steps run as root of the container, which is
// nobody on the host, because sudo would give them nothing.
func contained(place func(vm.VM) dispatch.Place) func(vm.VM) dispatch.Place {
	return func(m vm.VM) dispatch.Place {
		p := place(m)
		p.User, p.Engines, p.Env["USER"] = "", nil, "root"
		return p
	}
}
