package dispatch

import "github.com/terraphim/tgr/vm"

// connect gives a machine the network that its job may have. What it may not is told in the job's log.
func (d *Dispatcher) connect(m *Machine, l *Lease, s *sink) error {
	if m.Network == nil || d.c.Egress == nil {
		return nil
	}
	e := d.c.Egress(l.Run)
	e.Denied = func(denied vm.Denial) { s.say("##[warning]network: %s", denied) }
	return m.Network.SetEgress(m.ID, e)
}
