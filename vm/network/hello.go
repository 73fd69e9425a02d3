package network

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// maxHello bounds what is read of a TLS client before it has said where it wants to; with post-quantum keys that are
// about 2 KB.
const maxHello = 32 << 10

var errHello = errors.New("the hello was read")

// readHello reads a TLS client's first message and returns the host that it names, which may be "", and all bytes that
// were read: they are the server's to read again.
func readHello(ctx context.Context, conn net.Conn) (host string, read []byte, err error) {
	h := &helloConn{Conn: conn}
	found := false
	server := tls.Server(h, &tls.Config{GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
		host, found = info.ServerName, true
		return nil, errHello
	}})
	if err := server.HandshakeContext(ctx); !found {
		return "", nil, fmt.Errorf("TLS client's hello: %w", err)
	}
	return host, h.read.Bytes(), nil
}

// helloConn keeps what is read of a connection, up to maxHello, and writes nothing to it.
type helloConn struct {
	net.Conn
	read bytes.Buffer
}

func (c *helloConn) Read(b []byte) (int, error) {
	room := maxHello - c.read.Len()
	if room <= 0 {
		return 0, fmt.Errorf("it has more than %d bytes", maxHello)
	}
	n, err := c.Conn.Read(b[:min(len(b), room)])
	c.read.Write(b[:n])
	return n, err
}

func (c *helloConn) Write(b []byte) (int, error)      { return len(b), nil }
func (c *helloConn) Close() error                     { return nil } // the handshake does, when it fails
func (c *helloConn) SetDeadline(time.Time) error      { return nil }
func (c *helloConn) SetWriteDeadline(time.Time) error { return nil }

// refuseTLS tells a client that it is denied, in its own words: the alert access_denied.
func refuseTLS(w io.Writer) {
	w.Write([]byte{21, 3, 1, 0, 2, 2, 49})
}
