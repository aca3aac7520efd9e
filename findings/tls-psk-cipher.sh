# TLS 1.3 with a shared key goes by ChaCha20 where the same two programs take AES-256 with a certificate, whatever the processor is good at:
# OpenSSL 3.0.20 and GnuTLS 3.7.9 take such a key for one of SHA-256 only, the first suite of both is of SHA-384, and the next
# one is TLS_CHACHA20_POLY1305_SHA256. All pairs of the two do so, and understand each other. (gnutls-cli says "X.509" of it all the same.)
# Needs root (chroot), and the lists of Debian 12 with these very versions.
. "$(dirname "$0")/common.sh"
debian_packages bookworm openssl=3.0.20-1~deb12u2 gnutls-bin=3.7.9-2+deb12u7
key=$(printf '%064x' 5)
echo "alice:$key" >root/tmp/keys
in_root openssl req -x509 -newkey rsa:2048 -nodes -keyout /tmp/key.pem -out /tmp/cert.pem -subj /CN=x -days 30 2>/dev/null
psk=NORMAL:-VERS-ALL:+VERS-TLS1.3:+PSK:+DHE-PSK:+ECDHE-PSK
port=$((20000 + $$ % 20000))
suite() {  # SERVER CLIENT, each with @ for the port: the cipher that the client says it has
    port=$((port + 1))
    # shellcheck disable=SC2016 # for the inner shell
    in_root sh -c '
        $1 >/tmp/server.log 2>&1 & server=$!
        for _ in 1 2 3 4 5 6 7 8 9; do
            sleep 1
            (echo hello; sleep 1) | timeout 10 $2 >/tmp/client.log 2>&1 || true
            case $(cat /tmp/client.log) in *refused*) ;; *) break ;; esac
        done
        kill "$server"' sh "$(echo "$1" | sed "s/@/$port/")" "$(echo "$2" | sed "s/@/$port/")"
    grep -oE 'CHACHA20|AES_?-?256' root/tmp/client.log | head -n 1
}
openssl_server="openssl s_server -quiet -tls1_3 -accept @"
openssl_client="openssl s_client -brief -tls1_3 -connect 127.0.0.1:@"
gnutls_server="gnutls-serv --quiet --echo -p @ --priority $psk"
gnutls_client="gnutls-cli --insecure -p @ 127.0.0.1 --priority $psk"
theirs="-psk $key -psk_identity alice"
mine="--pskusername alice --pskkey $key"
expect "OpenSSL, a certificate" AES_256 "$(suite "$openssl_server -cert /tmp/cert.pem -key /tmp/key.pem" "$openssl_client")"
expect "OpenSSL, a shared key" CHACHA20 "$(suite "$openssl_server -nocert $theirs" "$openssl_client $theirs")"
expect "OpenSSL's server, GnuTLS's client, a certificate" AES-256 \
    "$(suite "$openssl_server -cert /tmp/cert.pem -key /tmp/key.pem" "$gnutls_client")"
expect "GnuTLS, a shared key" CHACHA20 "$(suite "$gnutls_server --pskpasswd /tmp/keys" "$gnutls_client $mine")"
expect "GnuTLS's server, OpenSSL's client" CHACHA20 "$(suite "$gnutls_server --pskpasswd /tmp/keys" "$openssl_client $theirs")"
expect "OpenSSL's server, GnuTLS's client" CHACHA20 "$(suite "$openssl_server -nocert $theirs" "$gnutls_client $mine")"
