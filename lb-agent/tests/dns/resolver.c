/* Looks NAME up COUNT times, or until SIGTERM if that is 0, one every PAUSE milliseconds. A line for
 * each: how many milliseconds it took, then the addresses, or "error" and why. */
#include <arpa/inet.h>
#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static volatile sig_atomic_t ended;

static void end(int signal)
{
	ended = signal;
}

static long now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000 + at.tv_nsec / 1000000;
}

static void look_up(const char *name)
{
	struct addrinfo hints = { .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM };
	struct addrinfo *list = NULL, *at;
	long start = now();
	int error = getaddrinfo(name, NULL, &hints, &list);
	char text[INET6_ADDRSTRLEN];

	printf("%ld", now() - start);
	if (error)
		printf(" error %s", gai_strerror(error));
	for (at = list; !error && at; at = at->ai_next) {
		const void *ip = at->ai_family == AF_INET
			? (void *)&((struct sockaddr_in *)at->ai_addr)->sin_addr
			: (void *)&((struct sockaddr_in6 *)at->ai_addr)->sin6_addr;

		printf(" %s", inet_ntop(at->ai_family, ip, text, sizeof(text)));
	}
	printf("\n");
	fflush(stdout);
	if (!error)
		freeaddrinfo(list);
}

int main(int argc, char **argv)
{
	int count = argc == 4 ? atoi(argv[2]) : 0;
	long pause = argc == 4 ? atol(argv[3]) : 0;
	long next = now();
	int done;

	signal(SIGTERM, end);
	for (done = 0; !ended && (!count || done < count); done++) {
		look_up(argv[1]);
		next += pause;
		if (next > now()) {
			long rest = next - now();
			struct timespec sleep = { rest / 1000, rest % 1000 * 1000000 };

			nanosleep(&sleep, NULL);
		}
	}
	return argc == 4 ? 0 : 2;
}
