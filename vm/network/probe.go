package network

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/google/nftables"

	"github.com/terraphim/tgr/vm"
)

// Probe says why this host cannot give machines their networks: it makes one, on a host that is itself a namespace, and
// removes both.
func Probe() (err error) {
	if err := mayMakeNamespaces(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "tgr-probe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	host := vm.NetItem{Kind: vm.NetNamespace, Name: "tgp" + strings.ToLower(rand.Text()[:8])}
	defer func() { err = errors.Join(err, host.Remove()) }()
	ns, err := newNamespace(host.Name)
	if err != nil {
		return err
	}
	defer ns.Close()
	p, err := Open(Config{Journal: vm.Journal{Dir: dir, Volatile: true}, Host: vm.NamespacePath(host.Name), Ready: 1, Brief: true})
	if err != nil {
		return err
	}
	s, err := p.Acquire(context.Background(), "probe", vm.Egress{Mode: vm.EgressOpen})
	if err == nil {
		err = s.Close()
	}
	return errors.Join(err, p.Close())
}

// Blocked names a packet filter of this host that drops forwarded packets of interfaces that it does not know, as
// Docker's and most firewalls do; "" when nftables, or iptables on top of it, has none. Rules before the drop may let
// ours through all the same.
func Blocked() string {
	c, err := nftables.New()
	if err != nil {
		return ""
	}
	chains, err := c.ListChains()
	if err != nil {
		return ""
	}
	for _, ch := range chains {
		hooked := ch.Hooknum != nil && *ch.Hooknum == *nftables.ChainHookForward && ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop
		v4 := ch.Table.Family == nftables.TableFamilyIPv4 || ch.Table.Family == nftables.TableFamilyINet
		if hooked && v4 {
			return fmt.Sprintf("chain %s of table %s", ch.Name, ch.Table.Name)
		}
	}
	return ""
}
