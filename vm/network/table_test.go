package network_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/network"
	"github.com/terraphim/tgr/vm/network/networktest"
)

// must ends the test at the first error.
func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func open() vm.Egress { return vm.Egress{Mode: vm.EgressOpen} }
func allow(hosts ...string) vm.Egress {
	return vm.Egress{Mode: vm.EgressAllow, Allow: hosts}
}

// attempt is one connection or datagram, and its verdict: "" is reached, otherwise the denial that is told.
type attempt struct{ proto, to, denied string }

// everywhere is what no machine reaches, whatever its policy.
func everywhere() []attempt {
	return []attempt{
		{"tcp", "10.0.0.5:5432", "denied tcp to 10.0.0.5:5432 (private range)"},
		{"tcp", "10.0.0.5:80", "denied tcp to 10.0.0.5:80 (private range)"},
		{"tcp", "10.0.0.5:443", "denied tcp to 10.0.0.5:443 (private range)"},
		{"udp", "10.0.0.5:9999", "denied udp to 10.0.0.5:9999 (private range)"},
		{"tcp", networktest.Resolver + ":53", "denied tcp to 10.53.0.53:53 (private range)"}, // the host's resolver is not the machine's
		{"udp", networktest.Resolver + ":53", "denied udp to 10.53.0.53:53 (private range)"},
		{"tcp", "172.16.3.4:22", "denied tcp to 172.16.3.4:22 (private range)"},
		{"tcp", "192.168.1.1:22", "denied tcp to 192.168.1.1:22 (private range)"},
		{"tcp", "169.254.169.254:80", "denied tcp to 169.254.169.254:80 (cloud metadata service)"},
		{"udp", "169.254.169.254:53", "denied udp to 169.254.169.254:53 (cloud metadata service)"},
		{"tcp", "169.254.1.1:22", "denied tcp to 169.254.1.1:22 (link-local)"},
		{"tcp", "168.63.129.16:80", "denied tcp to 168.63.129.16:80 (cloud metadata service)"},
		{"tcp", "100.100.100.200:80", "denied tcp to 100.100.100.200:80 (cloud metadata service)"},
		{"tcp", "192.0.0.192:80", "denied tcp to 192.0.0.192:80 (cloud metadata service)"},
		{"tcp", "100.64.0.9:22", "denied tcp to 100.64.0.9:22 (carrier-grade NAT)"},
		{"tcp", "198.18.7.7:22", "denied tcp to 198.18.7.7:22 (other machines)"},
		{"tcp", "192.88.99.1:22", "denied tcp to 192.88.99.1:22 (reserved range)"},
		{"udp", "224.0.0.251:5353", "denied udp to 224.0.0.251:5353 (multicast)"},
		{"tcp", networktest.HostIP + ":22", "denied tcp to 203.0.113.1:22 (the host itself)"},
		{"tcp", networktest.HostIP + ":80", "denied tcp to 203.0.113.1:80 (the host itself)"},
		{"udp", networktest.HostIP + ":9999", "denied udp to 203.0.113.1:9999 (the host itself)"},
		{"tcp", networktest.HostLAN + ":3000", "denied tcp to 192.168.77.1:3000 (the host itself)"},
		{"tcp", "198.18.0.1:80", "denied tcp to 198.18.0.1:80 (the host itself)"},
		{"tcp", "198.18.0.1:3129", "denied tcp to 198.18.0.1:3129 (the host itself)"}, // the proxy, asked for by its own port
		{"udp", "198.18.0.1:9999", "denied udp to 198.18.0.1:9999 (the host itself)"},
	}
}

// TestTable is the table of source, destination, port, protocol, policy and verdict. The source is a process in a
// machine's namespace; that of others is in TestFrames.
func TestTable(t *testing.T) {
	for _, tt := range []struct {
		name     string
		egress   vm.Egress
		attempts []attempt
	}{
		{"open", open(), append(everywhere(),
			attempt{"tcp", networktest.Web + ":5432", ""}, attempt{"tcp", networktest.Web + ":22", ""},
			attempt{"udp", networktest.Web + ":9999", ""}, attempt{"udp", networktest.Web + ":443", ""},
		)},
		{"none", vm.Egress{}, append(everywhere(),
			attempt{"tcp", networktest.Web + ":5432", "denied tcp to 203.0.113.80:5432 (the job has no network)"},
			attempt{"tcp", networktest.Web + ":443", "denied tcp to 203.0.113.80:443 (the job has no network)"},
			attempt{"udp", networktest.Web + ":9999", "denied udp to 203.0.113.80:9999 (the job has no network)"},
			attempt{"udp", networktest.Web + ":53", "denied udp to 203.0.113.80:53 (the job has no network)"},
		)},
		{"allow", allow("example.com"), append(everywhere(),
			attempt{"tcp", networktest.Web + ":22", "denied tcp to 203.0.113.80:22 (port not on the allow list)"},
			attempt{"tcp", networktest.Web + ":5432", "denied tcp to 203.0.113.80:5432 (port not on the allow list)"},
			attempt{"udp", networktest.Web + ":443", "denied udp to 203.0.113.80:443 (port not on the allow list)"}, // QUIC
			attempt{"udp", networktest.Web + ":53", "denied udp to 203.0.113.80:53 (port not on the allow list)"},
			attempt{"udp", networktest.Web + ":9999", "denied udp to 203.0.113.80:9999 (port not on the allow list)"},
		)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := networktest.New(t, network.Config{Inner: true, Ready: 1})
			m := w.Machine(tt.egress)
			var want, arrive []string
			for _, a := range tt.attempts {
				err := try(m, a.proto, a.to)
				if (err == nil) != (a.denied == "") {
					t.Errorf("%s %s: %v, want denied %q", a.proto, a.to, err, a.denied)
				}
				if a.denied != "" {
					want = append(want, a.denied)
				} else {
					arrive = append(arrive, a.proto+" "+a.to)
				}
			}
			if diff := cmp.Diff(want, m.Denials(len(want))); diff != "" {
				t.Errorf("denials (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(arrive, w.Arrived()); diff != "" {
				t.Errorf("arrived in the world (-want +got):\n%s", diff)
			}
		})
	}
}

// try reaches for something and waits for an answer.
func try(m *networktest.Machine, proto, to string) error {
	conn, err := m.Dial(proto+"4", to, 2*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
	if proto == "udp" {
		if _, err := conn.Write([]byte("hello")); err != nil {
			return err
		}
	}
	_, err = conn.Read(make([]byte, 100))
	return err
}

// TestOtherMachines has two machines of different pools, and of the same, that cannot reach each other by the address
// between slot and host.
func TestOtherMachines(t *testing.T) {
	w := networktest.New(t, network.Config{Inner: true, Ready: 1})
	a, b := w.Machine(open()), w.Machine(open())
	must(t, b.Inside(func() error {
		l, err := net.Listen("tcp4", ":4000")
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	}))
	for _, to := range []string{"198.18.0.2:4001", "198.19.0.1:4000", "198.19.0.3:4000", "198.19.0.0:22", "198.19.0.2:22"} {
		if err := try(a, "tcp", to); err == nil {
			t.Errorf("one machine reached %s", to)
		}
	}
	if got := w.Arrived(); len(got) > 0 {
		t.Errorf("arrived in the world: %q", got)
	}
}

// TestNames is the table of policies by name.
func TestNames(t *testing.T) {
	w := networktest.New(t, network.Config{Inner: true, Ready: 1})
	w.Name("example.com", networktest.Web)
	w.Name("www.example.com", networktest.Web)
	w.Name("a.b.example.com", networktest.Web)
	w.Name("other.test", networktest.Other)
	w.Name("ssh.test", networktest.Web)
	w.Name("rebind.example.com", "10.0.0.5")
	w.Name("half.example.com", "169.254.169.254", networktest.Web)
	w.Name("host.example.com", networktest.HostIP)
	list := []string{"example.com", "*.example.com", "ssh.test:22", "other.test:8443"}
	for _, tt := range []struct {
		name   string
		egress vm.Egress
		url    string
		want   string // of the body, or of the error
		denied []string
	}{
		{"a name of the list", allow(list...), "http://example.com/", "web example.com", nil},
		{"with TLS", allow(list...), "https://example.com/", "web example.com", nil},
		{"a wildcard", allow(list...), "https://www.example.com/", "web www.example.com", nil},
		{"a wildcard, further below", allow(list...), "http://a.b.example.com/", "web a.b.example.com", nil},
		{"a wildcard is not the name itself", allow("*.example.com"), "http://example.com/", "Refused", []string{"denied dns to example.com (not on the allow list)"}},
		{"another name", allow(list...), "https://another.test/", "Refused", []string{"denied dns to another.test (not on the allow list)"}},
		{"a name of the list at another port", allow(list...), "https://other.test/", "access denied", []string{"denied tcp to other.test:443 (not on the allow list)"}},
		{"a name that only ends alike", allow(list...), "https://badexample.com/", "Refused", []string{"denied dns to badexample.com (not on the allow list)"}},
		{"no network", vm.Egress{}, "http://example.com/", "Refused", []string{"denied dns to example.com (the job has no network)"}},
		{"a name for a private address", allow(list...), "http://rebind.example.com/", "Refused", []string{"denied dns to rebind.example.com at 10.0.0.5 (private range)"}},
		{"a name for the metadata service too", allow(list...), "http://half.example.com/", "Refused", []string{"denied dns to half.example.com at 169.254.169.254 (cloud metadata service)"}},
		{"a name for the host", open(), "http://host.example.com/", "Refused", []string{"denied dns to host.example.com at 203.0.113.1 (the host itself)"}},
		{"a name for a private address, open", open(), "http://rebind.example.com/", "Refused", []string{"denied dns to rebind.example.com at 10.0.0.5 (private range)"}},
		{"an address instead of a name", allow(list...), "http://" + networktest.Web + "/", "403 network: denied", []string{"denied tcp to 203.0.113.80:80 (not on the allow list)"}},
		{"an address instead of a name, TLS", allow(list...), "https://" + networktest.Web + "/", "access denied", []string{"denied tcp to 203.0.113.80:443 (it names no host)"}},
		{"open needs no name", open(), "http://" + networktest.Web + "/", "web 203.0.113.80", nil},
		{"there is no such name", open(), "http://nowhere.test/", "NameError", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := w.Machine(tt.egress)
			if got := fetch(m.Client(w.TLS), tt.url, ""); !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if got := m.Denials(len(tt.denied)); !slices.Equal(got, tt.denied) {
				t.Errorf("denials %q, want %q", got, tt.denied)
			}
		})
	}
}

func fetch(c *http.Client, url, host string) string {
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		return err.Error()
	}
	req.Host = host
	resp, err := c.Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		return fmt.Sprintf("%d %s", resp.StatusCode, b)
	}
	return fmt.Sprint(string(b), err)
}

// TestLies has a machine with an allow list that says one thing and wants another.
func TestLies(t *testing.T) {
	w := networktest.New(t, network.Config{Inner: true, Ready: 1})
	w.Name("example.com", networktest.Web)
	w.Name("ssh.test", networktest.Web)
	m := w.Machine(allow("example.com", "ssh.test:22"))
	c := m.Client(w.TLS)

	// An allowed name in the request, and another address: the proxy goes to where the name is.
	if got := fetch(c, "http://"+networktest.Other+"/", "example.com"); !strings.HasPrefix(got, "web example.com") {
		t.Errorf("another address with an allowed name: %q", got)
	}
	if got, want := w.Arrived(), []string{"tcp 203.0.113.80:80", "http example.com"}; !slices.Equal(got, want) {
		t.Errorf("arrived: %q, want %q", got, want)
	}
	// A second request on the same connection is for another host.
	if got := fetch(c, "http://"+networktest.Other+"/", "other.test"); !strings.HasPrefix(got, "403") {
		t.Errorf("another name on the same connection: %q", got)
	}
	// An allowed name in TLS, another in HTTP inside it, is between the client and the allowed host. A name that is not
	// allowed in TLS is refused in its own words.
	tc := w.TLS.Clone()
	tc.ServerName = "other.test"
	conn, err := m.Dial("tcp4", networktest.Web+":443", time.Second)
	must(t, err)
	if err := tls.Client(conn, tc).Handshake(); err == nil || !strings.Contains(err.Error(), "access denied") {
		t.Errorf("TLS to another name: %v", err)
	}
	conn.Close()
	// What is not TLS does not get through at 443, nor what is not HTTP at 80.
	for _, port := range []string{"443", "80"} {
		conn, err := m.Dial("tcp4", networktest.Web+":"+port, time.Second)
		must(t, err)
		fmt.Fprint(conn, "SSH-2.0-OpenSSH\r\n\r\n")
		conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		if b, _ := io.ReadAll(conn); strings.Contains(string(b), "web") {
			t.Errorf("port %s answered %q", port, b)
		}
		conn.Close()
	}
	if got := w.Arrived(); len(got) > 0 {
		t.Errorf("arrived in the world: %q", got)
	}
	// A port of the list is open only for addresses that the machine was told a name for.
	if err := try(m, "tcp", networktest.Web+":22"); err == nil {
		t.Error("ssh.test:22 was reached before its name was asked for")
	}
	if code, addrs := m.Ask("ssh.test.", dnsmessage.TypeA); code != 0 || len(addrs) != 1 {
		t.Errorf("ssh.test: %v %v", code, addrs)
	}
	if err := try(m, "tcp", networktest.Web+":22"); err != nil {
		t.Errorf("ssh.test:22: %v", err)
	}
	if err := try(m, "tcp", networktest.Other+":22"); err == nil {
		t.Error("another host was reached at port 22")
	}
	if got, want := w.Arrived(), []string{"tcp 203.0.113.80:22"}; !slices.Equal(got, want) {
		t.Errorf("arrived: %q, want %q", got, want)
	}
	// Neither IPv6 nor another way to a host is told.
	for _, kind := range []dnsmessage.Type{dnsmessage.TypeAAAA, dnsmessage.TypeHTTPS} {
		if code, addrs := m.Ask("example.com.", kind); code != 0 || len(addrs) != 0 {
			t.Errorf("%v: %v %v", kind, code, addrs)
		}
	}
	if code, _ := m.Ask("example.com.", dnsmessage.TypeALL); code != dnsmessage.RCodeRefused {
		t.Errorf("ANY: %v", code)
	}
	// What became of all that is told.
	want := []string{
		"denied tcp to other.test:80 (not on the allow list)",
		"denied tcp to other.test:443 (not on the allow list)",
		"denied tcp to 203.0.113.80:443 (not TLS)",
		"denied tcp to 203.0.113.80:22 (not on the allow list)",
		"denied tcp to 203.0.113.81:22 (not on the allow list)",
	}
	if diff := cmp.Diff(want, m.Denials(len(want))); diff != "" {
		t.Errorf("denials (-want +got):\n%s", diff)
	}
}

// TestRebinding changes what a name is while the machine keeps the address: the proxy asks again.
func TestRebinding(t *testing.T) {
	w := networktest.New(t, network.Config{Inner: true, Ready: 1})
	w.Name("example.com", networktest.Web)
	m := w.Machine(allow("example.com"))
	c := m.Client(w.TLS)
	if got := fetch(c, "https://example.com/", ""); !strings.HasPrefix(got, "web") {
		t.Fatal(got)
	}
	c.CloseIdleConnections()
	w.Arrived()
	w.Name("example.com", "169.254.169.254")
	tc := w.TLS.Clone()
	tc.ServerName = "example.com"
	conn, err := m.Dial("tcp4", networktest.Web+":443", time.Second)
	must(t, err)
	defer conn.Close()
	if err := tls.Client(conn, tc).Handshake(); err == nil {
		t.Error("the proxy connected")
	}
	if got := w.Arrived(); len(got) > 0 {
		t.Errorf("arrived: %q", got)
	}
	if got, want := m.Denials(1), []string{"denied tcp to example.com at 169.254.169.254:443 (cloud metadata service)"}; !slices.Equal(got, want) {
		t.Errorf("denials %q, want %q", got, want)
	}
}

// TestChangeOfPolicy takes away what a machine had, with the connection that it has.
func TestChangeOfPolicy(t *testing.T) {
	w := networktest.New(t, network.Config{Inner: true, Ready: 1})
	m := w.Machine(open())
	conn, err := m.Dial("udp4", networktest.Web+":9999", time.Second)
	must(t, err)
	defer conn.Close()
	echo := func() error {
		conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
		if _, err := conn.Write([]byte("x")); err != nil {
			return err
		}
		_, err := conn.Read(make([]byte, 10))
		return err
	}
	must(t, echo())
	must(t, m.SetEgress("m1", vm.Egress{}))
	if echo() == nil {
		t.Error("an open flow goes on without a network")
	}
	must(t, m.SetEgress("m1", open()))
	echo() // the error that the flow was told in between
	must(t, echo())
	if err := m.SetEgress("m1", vm.Egress{Mode: "most"}); err == nil {
		t.Error("a policy of a mode that there is not")
	}
}
