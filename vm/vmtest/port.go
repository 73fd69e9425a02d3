package vmtest

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/terraphim/tgr/guest"
)

// port: what connects to a loopback port in the machine talks to the host, in both directions, several at once.
func (s *suite) port(t *testing.T, c *guest.Client) {
	l, err := c.Listen(s.ctx(t), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	blob := make([]byte, 2<<20)
	rand.Read(blob)
	sum := fmt.Sprintf("%x", sha256.Sum256(blob))
	var served sync.WaitGroup
	defer served.Wait()
	defer l.Close()
	served.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			served.Go(func() { answer(t, conn, blob) })
		}
	})
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	const ask = `exec 3<>/dev/tcp/127.0.0.1/$0; echo "$1" >&3; read -r line <&3; echo "$line"; sha256sum <&3`
	var asked sync.WaitGroup
	for i := range 4 {
		asked.Go(func() {
			cmd := s.sh("")
			cmd.Args = []string{"bash", "-c", ask, port, fmt.Sprint("hello ", i)}
			var out bytes.Buffer
			exit, err := c.Exec(s.ctx(t), cmd, &out)
			want := fmt.Sprintf("you said hello %d\n%s  -\n", i, sum)
			if err != nil || !exit.Success() || out.String() != want {
				t.Errorf("%+v, %v, said %q, want %q", exit, err, &out, want)
			}
		})
	}
	asked.Wait()
}

// answer reads a line, and sends it back with the blob behind it.
func answer(t *testing.T, conn net.Conn, blob []byte) {
	defer conn.Close()
	var line strings.Builder
	for b := make([]byte, 1); ; {
		if _, err := io.ReadFull(conn, b); err != nil {
			t.Error(err)
			return
		}
		if line.Write(b); b[0] == '\n' {
			break
		}
	}
	if _, err := io.WriteString(conn, "you said "+line.String()); err != nil {
		t.Error(err)
	}
	if _, err := conn.Write(blob); err != nil {
		t.Error(err)
	}
}
