// A client as people write them: `client tcp|udp|unconnected ADDRESS PORT`.
//
// Prints the other end as it sees it, and what that says. Sockets of Go never block, and those that
// are not connected are of both families.
package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

func ask(way, to string) (net.Addr, string, error) {
	answer := make([]byte, 256)
	deadline := time.Now().Add(5 * time.Second)
	if way == "unconnected" {
		socket, err := net.ListenPacket("udp", ":0")
		if err != nil {
			return nil, "", err
		}
		defer socket.Close()
		if err := socket.SetDeadline(deadline); err != nil {
			return nil, "", err
		}
		addr, err := net.ResolveUDPAddr("udp", to)
		if err != nil {
			return nil, "", err
		}
		if _, err := socket.WriteTo([]byte("who?\n"), addr); err != nil {
			return nil, "", err
		}
		n, peer, err := socket.ReadFrom(answer)
		return peer, string(answer[:n]), err
	}
	conn, err := net.DialTimeout(way, to, 5*time.Second)
	if err != nil {
		return nil, "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, "", err
	}
	if _, err := conn.Write([]byte("who?\n")); err != nil {
		return nil, "", err
	}
	n, err := conn.Read(answer)
	return conn.RemoteAddr(), string(answer[:n]), err
}

func main() {
	peer, answer, err := ask(os.Args[1], net.JoinHostPort(os.Args[2], os.Args[3]))
	if errors.Is(err, syscall.ECONNREFUSED) {
		fmt.Fprintln(os.Stderr, "ECONNREFUSED")
		os.Exit(1)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	host, port, _ := net.SplitHostPort(peer.String())
	fmt.Println(host, port)
	fmt.Println(strings.TrimSpace(answer))
}
